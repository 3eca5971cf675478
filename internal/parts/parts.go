// Package parts runs what a daemon is made of side by side, until one part fails or the daemon is told to end.
package parts

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Group is parts that run side by side. Make it with Begin, add to it with Go, then wait for Done of its context and call Wait.
type Group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

// Begin returns a group without parts. They end with ctx.
func Begin(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

// Context ends when the parts are to end.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs a part. Its error, unless the parts are ending anyway, ends them all and is told by its name.
func (g *Group) Go(name string, run func(context.Context) error) {
	g.wg.Go(func() {
		if err := run(g.ctx); err != nil && g.ctx.Err() == nil {
			g.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// Wait waits for all parts to have ended, and returns the error of the one that ended them, nil if it was the context.
func (g *Group) Wait() error {
	g.wg.Wait()
	err := context.Cause(g.ctx)
	g.cancel(nil)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
