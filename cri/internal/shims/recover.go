package shims

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// takeLimit bounds the taking over of all that one shim holds, once it has answered.
const takeLimit = 5 * time.Second

// answerLimit is how long a start of the daemon waits for the shims to answer, all at once.
const answerLimit = 700 * time.Millisecond

// Found is what shims hold, by id.
type Found struct {
	Pods       map[string]v1.PodState
	Containers map[string]v1.ContainerState
	// Silent is how many shims live but have not answered yet (stopped, starved, or of another protocol). What they hold
	// is not listed, and goes on.
	Silent int
}

// Recover finds the shims that an earlier daemon left and takes their descriptors. It returns what they hold, for the
// daemon to compare with its records; exits that happened meanwhile are passed to the exited function after Recover has
// returned them here. A directory whose shim is gone is removed.
//
// A shim is gone when nobody listens on its socket. One that does not answer in time is never taken for gone: later is
// called, from a goroutine of the pool's, when it does answer or has gone after all.
func (p *Pool) Recover(ctx context.Context, later func(Found)) (Found, error) {
	all := Found{Pods: map[string]v1.PodState{}, Containers: map[string]v1.ContainerState{}}
	if err := becomeParent(); err != nil {
		return all, err
	}
	ents, err := os.ReadDir(p.cfg.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return all, err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var silent, idle []*shim
	for _, ent := range ents {
		wg.Go(func() {
			s := &shim{id: ent.Name(), dir: filepath.Join(p.cfg.Dir, ent.Name()), pool: p, profiles: map[string]bool{}}
			hello, err := p.enter(ctx, s, answerLimit)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				all.add(hello)
				if len(hello.Pods) == 0 && len(hello.Containers) == 0 {
					idle = append(idle, s)
				}
			case gone(err):
				p.log.Warn("shim is gone", "shim", s.id, "error", err)
				p.discard(s)
			default:
				p.log.Error("shim does not answer; what it holds goes on, and is taken back when it does", "shim", s.id, "error", err)
				silent = append(silent, s)
			}
		})
	}
	wg.Wait()
	bounded, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	p.thin(bounded, idle)
	all.Silent = len(silent)
	p.mu.Lock()
	p.silent = len(silent)
	p.mu.Unlock()
	for _, s := range silent {
		p.wg.Go(func() { p.heed(s, later) })
	}
	return all, nil
}

// gone says that nobody listens on a shim's socket.
func gone(err error) bool { return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) }

func (f *Found) add(hello *v1.HelloReply) {
	for _, st := range hello.Pods {
		f.Pods[st.ID] = st
	}
	for _, st := range hello.Containers {
		f.Containers[st.ID] = st
	}
}

// enter connects to a shim and takes what it holds. It is one of the pool's before it is connected, so that its end is
// seen from the first moment, and takes no pods before it has told what it has.
func (p *Pool) enter(ctx context.Context, s *shim, limit time.Duration) (*v1.HelloReply, error) {
	p.mu.Lock()
	p.shims[s.id], s.draining = s, true
	p.mu.Unlock()
	hello, err := s.connectWithin(ctx, limit)
	if err != nil {
		p.mu.Lock()
		delete(p.shims, s.id)
		p.mu.Unlock()
		return nil, err
	}
	if err := p.adoptShim(ctx, s, hello.Pid); err != nil { // it does without until the next daemon
		p.log.Error("shim is not in its unit", "shim", s.id, "error", err)
	}
	bounded, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	err = p.take(bounded, s, hello)
	if errors.Is(err, context.DeadlineExceeded) { // it fell silent in the middle: what it has is asked for anew
		p.mu.Lock()
		delete(p.shims, s.id)
		p.mu.Unlock()
		s.disconnect()
		return nil, err
	}
	if err != nil {
		p.log.Error("shim not fully recovered", "shim", s.id, "error", err)
	}
	drains := p.retire(bounded, s, hello)
	p.mu.Lock()
	s.draining = drains
	p.mu.Unlock()
	return hello, nil
}

// heed waits for a silent shim's answer or end.
func (p *Pool) heed(s *shim, later func(Found)) {
	for wait := answerLimit; ; wait = min(2*wait, 10*time.Second) {
		select {
		case <-p.stop:
			return
		case <-time.After(wait):
		}
		f := Found{Pods: map[string]v1.PodState{}, Containers: map[string]v1.ContainerState{}}
		hello, err := p.enter(context.Background(), s, wait) //nolint:gosec // bounded, and by the pool's end
		switch {
		case err == nil:
			f.add(hello)
			p.log.Warn("shim answers again", "shim", s.id, "pods", len(f.Pods), "containers", len(f.Containers))
		case gone(err):
			p.log.Error("silent shim is gone", "shim", s.id, "error", err)
			p.discard(s)
		default:
			continue
		}
		p.heeding.Lock() // whoever is told that nobody is silent any more must have been told before what the others hold
		defer p.heeding.Unlock()
		p.mu.Lock()
		p.silent--
		f.Silent = p.silent
		p.mu.Unlock()
		later(f)
		return
	}
}
