package v1

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"sync"

	"github.com/berth-project/berth/proto/errs"
)

// Event is a message a shim sent by itself: Name is one of the Event constants, Body its JSON.
type Event struct {
	Name string
	Body json.RawMessage
}

// Client is the daemon's end of a connection. Calls may run concurrently.
type Client struct {
	conn   *Conn
	events func(Event)

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan frame
	dead    error
	done    chan struct{}
}

// Dial connects to the shim that listens at path.
func Dial(ctx context.Context, path string, events func(Event)) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, errs.Unavailable.Errorf("shim: %w", err)
	}
	conn, err := NewConn(c.(*net.UnixConn)) //nolint:forcetypeassert // "unix" dials a UnixConn
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &Client{conn: conn, events: events, waiting: map[uint64]chan frame{}, done: make(chan struct{})}, nil
}

// Run receives until the connection ends and returns why. Events are handed, one at a time and in order, to the
// function given to Dial, which must not call back into this client and wait. Calls fail once Run has returned.
func (c *Client) Run() error {
	for {
		f, err := c.conn.receive()
		if err != nil {
			c.fail(err)
			return err
		}
		switch f.kind {
		case kindEvent:
			env, err := decode(f.body)
			closeAll(f.fds)
			if err != nil {
				c.fail(err)
				return err
			}
			c.events(Event{Name: env.Method, Body: env.Body})
		case kindResponse:
			c.mu.Lock()
			ch := c.waiting[f.id]
			delete(c.waiting, f.id)
			c.mu.Unlock()
			if ch == nil { // its caller went away
				closeAll(f.fds)
				continue
			}
			ch <- f
		default:
			closeAll(f.fds)
		}
	}
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return
	}
	c.dead = errs.Unavailable.Errorf("shim connection: %w", err)
	_ = c.conn.Close()
	close(c.done)
}

// Close ends the connection and all calls on it.
func (c *Client) Close() { c.fail(os.ErrClosed) }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Call sends a request with descriptors (which stay the caller's) and waits for its answer. The descriptors that
// come with the answer are the caller's to close. An error of the shim keeps its class; a connection that is
// gone is Unavailable.
func (c *Client) Call(ctx context.Context, method string, req any, fds []*os.File, reply any) ([]*os.File, error) {
	body, err := encode(method, req, nil)
	if err != nil {
		return nil, err
	}
	ch := make(chan frame, 1)
	c.mu.Lock()
	if c.dead != nil {
		defer c.mu.Unlock()
		return nil, c.dead
	}
	c.next++
	id := c.next
	c.waiting[id] = ch
	c.mu.Unlock()
	if err := c.conn.send(frame{kind: kindRequest, id: id, body: body, fds: fds}); err != nil {
		c.forget(id)
		return nil, errs.Unavailable.Errorf("shim %s: %w", method, err)
	}
	select {
	case f := <-ch:
		return finish(f, reply)
	case <-c.done:
		select { // the answer may have come just before the end
		case f := <-ch:
			return finish(f, reply)
		default:
		}
		return nil, c.dead
	case <-ctx.Done():
		if !c.forget(id) { // it was answered meanwhile: take it, the descriptors must not leak
			return finish(<-ch, reply)
		}
		return nil, ctx.Err()
	}
}

func (c *Client) forget(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.waiting[id]
	delete(c.waiting, id)
	return ok
}

func finish(f frame, reply any) ([]*os.File, error) {
	env, err := decode(f.body)
	if err == nil {
		err = env.failure()
	}
	if err == nil && reply != nil {
		err = json.Unmarshal(env.Body, reply)
	}
	if err != nil {
		closeAll(f.fds)
		return nil, err
	}
	return f.fds, nil
}
