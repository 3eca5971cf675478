package discovery

import (
	"context"
	"sync/atomic"

	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// either asks the first source, and the second while the first has never worked.
type either struct {
	first, second Source
	listed        atomic.Bool // by the first, in this process's life
	fallen        atomic.Bool
}

// Either is a Source that takes its list from first, or from second while first has never listed; looks go to whoever
// listed last, and the kernel's log (second) is always read: NVML's events are lost with a probe that dies.
//
// A first that has listed once and fails is an error, and what it listed stands: the second's list is without memory and
// instances, so that to take it would end every MPS daemon and withdraw every instance because one call failed.
func Either(first, second Source) Source { return &either{first: first, second: second} }

func (e *either) now() Source {
	if e.fallen.Load() {
		return e.second
	}
	return e.first
}

// Name implements Source.
func (e *either) Name() string { return e.now().Name() }

// Inventory implements Source.
func (e *either) Inventory(ctx context.Context) (*inventory.Node, error) {
	n, err := e.first.Inventory(ctx)
	if err == nil {
		e.listed.Store(true)
		e.fallen.Store(false)
		return n, nil
	}
	if ctx.Err() != nil || e.listed.Load() { // it hangs, or fails for now: what is known is better than less
		return nil, err
	}
	n, second := e.second.Inventory(ctx)
	if second != nil {
		return nil, errs.Unavailable.Errorf("%w; %w", err, second)
	}
	e.fallen.Store(true)
	return n, nil
}

// Sample implements Source.
func (e *either) Sample(ctx context.Context, t Target) (health.Sample, error) {
	return e.now().Sample(ctx, t)
}

// Processes implements Source.
func (e *either) Processes(ctx context.Context, t Target) ([]Process, error) {
	return e.now().Processes(ctx, t)
}

// Events implements Source.
func (e *either) Events(ctx context.Context) ([]health.Event, error) { return e.second.Events(ctx) }

// broken is a source that could not be opened.
type broken struct {
	name string
	err  error
}

// Broken answers every question with an error.
func Broken(name string, err error) Source { return broken{name, err} }

// Name implements Source.
func (b broken) Name() string { return b.name }

// Inventory implements Source.
func (b broken) Inventory(context.Context) (*inventory.Node, error) { return nil, b.err }

// Sample implements Source.
func (b broken) Sample(context.Context, Target) (health.Sample, error) {
	return health.Sample{}, b.err
}

// Events implements Source.
func (b broken) Events(context.Context) ([]health.Event, error) { return nil, b.err }

// Processes implements Source.
func (b broken) Processes(context.Context, Target) ([]Process, error) { return nil, b.err }
