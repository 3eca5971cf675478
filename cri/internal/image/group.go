package image

import (
	"context"
	"sync"

	"github.com/berth-project/berth/proto/errs"
)

// group lets callers that want the same thing wait for one run of it. The zero value works.
//
//	(none) --first do--> running (n callers) --done--> (none)
//	                        \--last caller's ctx ends--> cancelled --> (none)
type group struct {
	mu    sync.Mutex
	calls map[string]*call
}

type call struct {
	done   chan struct{}
	cancel context.CancelFunc
	n      int
	img    *Image
	err    error
}

// do runs work under key, or waits for the run that is under way. Each caller leaves when its own ctx ends; the
// work's context ends when the last has left, who then waits until the work has stopped.
func (g *group) do(ctx context.Context, key string, work func(context.Context) (*Image, error)) (*Image, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	c := g.calls[key]
	if c == nil {
		c = &call{done: make(chan struct{})}
		if g.calls == nil {
			g.calls = map[string]*call{}
		}
		g.calls[key] = c
		var wctx context.Context
		wctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
		go func() {
			defer c.cancel()
			c.img, c.err = guarded(wctx, work)
			g.mu.Lock()
			g.drop(key, c)
			g.mu.Unlock()
			close(c.done)
		}()
	}
	c.n++
	g.mu.Unlock()
	select {
	case <-c.done:
		return c.img, c.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	c.n--
	last := c.n == 0
	if last {
		g.drop(key, c)
		c.cancel()
	}
	g.mu.Unlock()
	if last {
		<-c.done
	}
	return nil, ctx.Err()
}

// guarded turns a panic, in what reads a stranger's manifest, into an error of this one call.
func guarded(ctx context.Context, work func(context.Context) (*Image, error)) (img *Image, err error) {
	defer func() {
		if p := recover(); p != nil {
			img, err = nil, errs.Internal.Errorf("panic: %v", p)
		}
	}()
	return work(ctx)
}

// drop makes room for the next run under key. The caller holds mu.
func (g *group) drop(key string, c *call) {
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}
