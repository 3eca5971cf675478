package parts_test

import (
	"context"
	"errors"
	"testing"

	"github.com/berth-project/berth/internal/parts"
)

var errBroken = errors.New("broken")

// TestParts: the first part that fails ends the others, and its error is the daemon's.
func TestParts(t *testing.T) {
	p := parts.Begin(t.Context())
	ended := false
	p.Go("patient", func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() })
	p.Go("short", func(context.Context) error { return nil })
	p.Go("bad", func(context.Context) error { return errBroken })
	<-p.Context().Done()
	if err := p.Wait(); !errors.Is(err, errBroken) || err.Error() != "bad: broken" || !ended {
		t.Errorf("%v, the other one has ended: %v", err, ended)
	}
}

// TestTold: a daemon that is told to end has no error, whatever its parts say on the way.
func TestTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := parts.Begin(ctx)
	p.Go("late", func(ctx context.Context) error { <-ctx.Done(); return errBroken })
	cancel()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}
