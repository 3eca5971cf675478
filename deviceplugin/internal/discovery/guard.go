package discovery

import (
	"context"
	"sync"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// Guard is a Source whose calls end in time, whatever the one behind it does. A call that does not answer is left
// alone in its goroutine, and until it returns no other call of the same kind for the same GPU is made: a GPU that
// hangs costs one goroutine, and the others nothing.
type Guard struct {
	src    Source
	limits Limits

	mu   sync.Mutex
	busy map[string]time.Time // by kind and GPU: when the call that is out began
}

// Limits are the time each kind of call has.
type Limits struct{ Inventory, Sample time.Duration }

// NewGuard puts limits around a source.
func NewGuard(src Source, l Limits) *Guard {
	return &Guard{src: src, limits: l, busy: map[string]time.Time{}}
}

// Name implements Source.
func (g *Guard) Name() string { return g.src.Name() }

// Inventory implements Source.
func (g *Guard) Inventory(ctx context.Context) (*inventory.Node, error) {
	return guarded(ctx, g, "the list of GPUs", g.limits.Inventory, g.src.Inventory)
}

// Sample implements Source.
func (g *Guard) Sample(ctx context.Context, t Target) (health.Sample, error) {
	return guarded(ctx, g, "a look at "+t.UUID, g.limits.Sample, func(ctx context.Context) (health.Sample, error) { return g.src.Sample(ctx, t) })
}

// Processes implements Source.
func (g *Guard) Processes(ctx context.Context, t Target) ([]Process, error) {
	return guarded(ctx, g, "the processes of "+t.UUID, g.limits.Sample, func(ctx context.Context) ([]Process, error) { return g.src.Processes(ctx, t) })
}

// Events implements Source. It has no limit: waiting is its purpose.
func (g *Guard) Events(ctx context.Context) ([]health.Event, error) { return g.src.Events(ctx) }

func guarded[T any](ctx context.Context, g *Guard, what string, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	var none T
	start := time.Now()
	g.mu.Lock()
	if since, out := g.busy[what]; out {
		g.mu.Unlock()
		return none, errs.DeadlineExceeded.Errorf("%s has not ended for %v", what, time.Since(since).Round(time.Second))
	}
	g.busy[what] = start
	g.mu.Unlock()
	type answer struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan answer, 1)
	go func() { // waited for, unless it hangs: that is the guard's purpose
		v, err := call(ctx)
		g.mu.Lock()
		delete(g.busy, what)
		g.mu.Unlock()
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
	}
	select { // it may have ended because ctx did: its own words say more
	case a := <-done:
		return a.value, a.err
	case <-time.After(20 * time.Millisecond):
	}
	return none, errs.DeadlineExceeded.Errorf("%s did not end within %v", what, limit)
}
