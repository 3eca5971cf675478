package supervisor

import (
	"context"
	"encoding/json"
	"os"
	"sync/atomic"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// backlog is how many events wait for a slow daemon.
const backlog = 1024

// session is one connection of a daemon.
type session struct {
	s       *Supervisor
	peer    *v1.Peer
	greeted atomic.Bool
}

// Serve answers a daemon on conn until the connection ends.
func (s *Supervisor) Serve(ctx context.Context, conn *v1.Conn) error {
	peer := v1.NewPeer(conn, backlog)
	defer s.leave(peer)
	return peer.Serve(ctx, &session{s: s, peer: peer})
}

// answer decodes a request of type T and calls fn, which owns the descriptors.
func answer[T any](body json.RawMessage, fds []*os.File, fn func(*T, []*os.File) (any, []*os.File, error)) (any, []*os.File, error) {
	req := new(T)
	if len(body) > 0 {
		if err := json.Unmarshal(body, req); err != nil {
			closeAll(fds)
			return nil, nil, errs.InvalidArgument.Errorf("bad request: %w", err)
		}
	}
	return fn(req, fds)
}

// plain is answer for methods without descriptors.
func plain[T any](body json.RawMessage, fds []*os.File, fn func(*T) (any, error)) (any, []*os.File, error) {
	closeAll(fds)
	return answer(body, nil, func(r *T, _ []*os.File) (any, []*os.File, error) {
		reply, err := fn(r)
		return reply, nil, err
	})
}

// Handle implements v1.Handler.
func (c *session) Handle(ctx context.Context, method string, body json.RawMessage, fds []*os.File) (any, []*os.File, error) {
	s := c.s
	if method == v1.MethodHello {
		return plain(body, fds, func(r *v1.Hello) (any, error) {
			reply, err := s.hello(*r, c.peer)
			if err != nil {
				return nil, err
			}
			c.greeted.Store(true)
			return reply, nil
		})
	}
	if !c.greeted.Load() {
		closeAll(fds)
		return nil, nil, errs.FailedPrecondition.Errorf("%s before Hello", method)
	}
	switch method {
	case v1.MethodRunPod:
		return answer(body, fds, func(r *v1.RunPod, f []*os.File) (any, []*os.File, error) { return s.runPod(ctx, r, f) })
	case v1.MethodRemovePod:
		return plain(body, fds, func(r *v1.PodRef) (any, error) { return s.farewell(), s.removePod(ctx, r.ID) })
	case v1.MethodPutSeccomp:
		return plain(body, fds, func(r *v1.PutSeccomp) (any, error) { return nil, s.putSeccomp(r) })
	case v1.MethodStart:
		return answer(body, fds, func(r *v1.Start, f []*os.File) (any, []*os.File, error) {
			return s.bounded(ctx, r.Limit, f, func(ctx context.Context) (any, []*os.File, error) { return s.start(ctx, r, f) })
		})
	case v1.MethodExec:
		return answer(body, fds, func(r *v1.Exec, f []*os.File) (any, []*os.File, error) {
			return s.bounded(ctx, r.Limit, f, func(ctx context.Context) (any, []*os.File, error) { return s.exec(ctx, r, f) })
		})
	case v1.MethodAttach:
		return answer(body, fds, func(r *v1.Attach, f []*os.File) (any, []*os.File, error) { return nil, nil, s.attach(r, f) })
	case v1.MethodReopenLog:
		return plain(body, fds, func(r *v1.ContainerRef) (any, error) { return nil, s.reopenLog(r.ID) })
	case v1.MethodDelete:
		return plain(body, fds, func(r *v1.ContainerRef) (any, error) { return s.farewell(), s.remove(ctx, r.ID) })
	case v1.MethodHandles:
		closeAll(fds)
		return answer(body, nil, func(r *v1.HandlesRequest, _ []*os.File) (any, []*os.File, error) { return s.handles(r) })
	case v1.MethodAdoptPod:
		return answer(body, fds, func(r *v1.AdoptPod, f []*os.File) (any, []*os.File, error) { return nil, nil, s.adoptPod(r, f) })
	case v1.MethodAdoptContainer:
		return answer(body, fds, func(r *v1.AdoptContainer, f []*os.File) (any, []*os.File, error) {
			return nil, nil, s.adoptContainer(r, f)
		})
	case v1.MethodDrain:
		return plain(body, fds, func(*struct{}) (any, error) {
			reply := s.farewell()
			s.drain()
			return reply, nil
		})
	}
	closeAll(fds)
	return nil, nil, errs.Unimplemented.Errorf("method %q", method)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
