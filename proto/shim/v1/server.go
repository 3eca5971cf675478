package v1

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Handler answers requests. It owns fds and closes those it does not keep; the descriptors it returns stay its
// own and are only sent. Requests of one connection run concurrently, however many: a handler bounds those that may hang.
//
// A reply that has a method Sent() is told when it has gone out (or can not), so that a handler may return
// duplicates and close them then.
type Handler interface {
	Handle(ctx context.Context, method string, body json.RawMessage, fds []*os.File) (reply any, out []*os.File, err error)
}

// Peer is the shim's end of one connection.
type Peer struct {
	conn   *Conn
	queue  chan frame
	first  chan struct{} // closed when the first response, to Hello, is out: events follow it
	greet  sync.Once
	closed chan struct{}
	once   sync.Once
}

// NewPeer makes the shim's end of conn. Up to backlog events wait for a slow daemon; one that falls further
// behind is disconnected and learns what it missed from its next Hello.
func NewPeer(conn *Conn, backlog int) *Peer {
	return &Peer{conn: conn, queue: make(chan frame, backlog), first: make(chan struct{}), closed: make(chan struct{})}
}

// Notify queues an event without blocking.
func (p *Peer) Notify(name string, body any) {
	b, err := encode(name, body, nil)
	if err != nil {
		return // all event types marshal; see the package's tests
	}
	select {
	case p.queue <- frame{kind: kindEvent, body: b}:
	default:
		p.close()
	}
}

func (p *Peer) close() {
	p.once.Do(func() {
		close(p.closed)
		_ = p.conn.Close()
	})
}

// Serve answers requests with h until the connection ends, then waits for the requests in flight. A panic in h
// fails that request alone.
func (p *Peer) Serve(ctx context.Context, h Handler) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer p.close()
	wg.Go(p.pump)
	for {
		f, err := p.conn.receive()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		if f.kind != kindRequest {
			closeAll(f.fds)
			continue
		}
		wg.Go(func() { p.answer(ctx, h, f) })
	}
}

func (p *Peer) pump() {
	select {
	case <-p.first:
	case <-p.closed:
		return
	}
	for {
		select {
		case f := <-p.queue:
			if p.conn.send(f) != nil {
				p.close()
				return
			}
		case <-p.closed:
			return
		}
	}
}

func (p *Peer) answer(ctx context.Context, h Handler, f frame) {
	reply, out, err := invoke(ctx, h, f)
	body, eerr := encode("", reply, err)
	if eerr != nil {
		body, _ = encode("", nil, eerr) //nolint:errcheck // an error text always marshals
		out = nil
	}
	if p.conn.send(frame{kind: kindResponse, id: f.id, body: body, fds: out}) != nil {
		p.close()
	}
	p.greet.Do(func() { close(p.first) })
	if r, ok := reply.(interface{ Sent() }); ok {
		r.Sent()
	}
}

func invoke(ctx context.Context, h Handler, f frame) (reply any, out []*os.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errs.Internal.Errorf("panic: %v\n%s", r, debug.Stack())
			reply, out = nil, nil
		}
	}()
	env, err := decode(f.body)
	if err != nil {
		closeAll(f.fds)
		return nil, nil, errs.InvalidArgument.Wrap(err)
	}
	return h.Handle(ctx, env.Method, env.Body, f.fds)
}
