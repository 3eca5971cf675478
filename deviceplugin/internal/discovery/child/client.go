package child

import (
	"context"
	"sync"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// Client is the parent's side, a discovery.Source. All GPUs share one child. A library that takes a lock and hangs
// stalls everybody in it, so a GPU whose look does not end is a suspect: the child is killed, and the suspect is
// asked through a child of its own until it answers again. Who was merely in its company answers there at once.
type Client struct {
	name    string
	program string
	args    []string
	// share is the part of a call's time after which the shared child is given up, so that the suspect's own child
	// still has time to answer.
	share float64

	mu      sync.Mutex
	lanes   map[string]*process // "" is the shared one
	suspect map[string]bool
	closed  bool
	starts  int
	// of lists that fail
	listErr   error
	pause     time.Duration
	listAgain time.Time
}

var _ discovery.Source = (*Client)(nil)

// New makes a client that starts `program args...` when it is first asked. name is the source's behind it.
func New(name, program string, args []string) *Client {
	return &Client{name: name, program: program, args: args, share: 0.5, lanes: map[string]*process{}, suspect: map[string]bool{}}
}

// Name implements discovery.Source.
func (c *Client) Name() string { return c.name }

// Starts counts the children that were started.
func (c *Client) Starts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts
}

// Close kills every child and waits for those that end at once.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	lanes := c.lanes
	c.lanes = map[string]*process{}
	c.mu.Unlock()
	for _, p := range lanes {
		p.kill()
		select {
		case <-p.done:
		case <-time.After(time.Second): // stuck in the kernel
		}
	}
}

// lane is the running child of a name, started if need be.
func (c *Client) lane(name string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errs.Canceled.Errorf("the probe is closed")
	}
	if p := c.lanes[name]; p != nil && p.ended() == nil {
		return p, nil
	}
	p, err := start(c.program, c.args)
	if err != nil {
		return nil, err
	}
	c.starts++
	c.lanes[name] = p
	return p, nil
}

// drop kills a lane's child if it is still p.
func (c *Client) drop(name string, p *process) {
	p.kill()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[name] == p {
		delete(c.lanes, name)
	}
}

// call asks a lane. A child that does not answer before ctx ends is killed.
func (c *Client) call(ctx context.Context, lane string, r request) (response, error) {
	p, err := c.lane(lane)
	if err != nil {
		return response{}, err
	}
	ch, err := p.ask(r)
	if err != nil {
		return response{}, err
	}
	select {
	case resp, ok := <-ch:
		if !ok {
			return response{}, p.ended()
		}
		return resp, resp.failure()
	case <-ctx.Done():
		if r.Verb != verbEvents { // waiting is their purpose
			c.drop(lane, p)
		}
		return response{}, ctx.Err()
	}
}

// about asks for one GPU: in the shared child, or in its own while it is suspect.
func (c *Client) about(ctx context.Context, r request) (response, error) {
	c.mu.Lock()
	alone := c.suspect[r.GPU.UUID]
	c.mu.Unlock()
	if !alone {
		shared := ctx
		if end, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			shared, cancel = context.WithTimeout(ctx, time.Duration(float64(time.Until(end))*c.share))
			defer cancel()
		}
		resp, err := c.call(shared, "", r)
		if errs.Of(err) == errs.Unavailable { // the driver was exchanged below the library: another child sees the new one
			c.retire("")
		}
		if err == nil || errs.Of(err) == errs.NotFound || ctx.Err() != nil {
			return resp, err
		}
	}
	resp, err := c.call(ctx, r.GPU.UUID, r)
	c.mu.Lock()
	well := err == nil || errs.Of(err) == errs.NotFound
	c.suspect[r.GPU.UUID] = !well
	p := c.lanes[r.GPU.UUID]
	c.mu.Unlock()
	if well && p != nil {
		c.drop(r.GPU.UUID, p)
	}
	return resp, err
}

// retire kills a lane's child, so that the next question starts another one.
func (c *Client) retire(name string) {
	c.mu.Lock()
	p := c.lanes[name]
	c.mu.Unlock()
	if p != nil {
		c.drop(name, p)
	}
}

// lister is the lane of lists and events.
const lister = "inventory"

// maxPause bounds how long a list that failed is not asked for again.
const maxPause = 8 * time.Second

// Inventory implements discovery.Source. A library that cannot list is given up with its process, because it does
// not notice that a driver was loaded or exchanged; on a node without one the attempts grow rare.
func (c *Client) Inventory(ctx context.Context) (*inventory.Node, error) {
	c.mu.Lock()
	pause, last := time.Until(c.listAgain), c.listErr
	c.mu.Unlock()
	if pause > 0 {
		return nil, last
	}
	resp, err := c.call(ctx, lister, request{Verb: verbInventory})
	if err == nil && resp.Inventory == nil {
		err = errs.Internal.Errorf("the probe answered without an inventory")
	}
	if err != nil && ctx.Err() == nil {
		c.retire(lister)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listErr = err; err == nil {
		c.pause, c.listAgain = 0, time.Time{}
		return resp.Inventory, nil
	}
	c.pause = min(max(2*c.pause, 500*time.Millisecond), maxPause)
	c.listAgain = time.Now().Add(c.pause)
	return nil, err
}

// Sample implements discovery.Source.
func (c *Client) Sample(ctx context.Context, t discovery.Target) (health.Sample, error) {
	resp, err := c.about(ctx, request{Verb: verbSample, GPU: t})
	if err != nil {
		return health.Sample{}, err
	}
	if resp.Sample == nil {
		return health.Sample{}, errs.Internal.Errorf("the probe answered without a sample")
	}
	return *resp.Sample, nil
}

// Events implements discovery.Source.
func (c *Client) Events(ctx context.Context) ([]health.Event, error) {
	resp, err := c.call(ctx, lister, request{Verb: verbEvents})
	return resp.Events, err
}

// Processes implements discovery.Source.
func (c *Client) Processes(ctx context.Context, t discovery.Target) ([]discovery.Process, error) {
	resp, err := c.about(ctx, request{Verb: verbProcesses, GPU: t})
	return resp.Processes, err
}
