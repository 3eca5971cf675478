package shims

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// discard removes what is left of a shim whose process is gone.
func (p *Pool) discard(s *shim) {
	s.disconnect()
	err := errors.Join(os.RemoveAll(s.dir), p.cfg.Cgroups.Remove(s.group()))
	if err != nil {
		p.log.Warn("leftovers of a shim stay", "shim", s.id, "error", err)
	}
}

// take fetches duplicates of everything a shim holds.
func (p *Pool) take(ctx context.Context, s *shim, hello *v1.HelloReply) error {
	var all []error
	for _, st := range hello.Pods {
		var reply v1.HandlesReply
		fds, err := s.call(ctx, v1.MethodHandles, v1.HandlesRequest{Pod: st.ID}, nil, &reply)
		if err != nil {
			all = append(all, fmt.Errorf("pod %s: %w", st.ID, err))
			continue
		}
		e := &podEntry{shim: s, ns: byName(reply.Names, fds), order: st.Namespaces, initPid: st.InitPid}
		e.init = e.ns[v1.HandlePidfd]
		delete(e.ns, v1.HandlePidfd)
		p.mu.Lock()
		if half := p.pods[st.ID]; half != nil { // of a shim that fell silent while it was asked
			half.close()
		}
		p.pods[st.ID] = e
		p.mu.Unlock()
	}
	for _, st := range hello.Containers {
		e := &containerEntry{shim: s, pid: st.Pid, started: st.StartedAt, exited: st.Exit != nil, handles: map[string]*os.File{}}
		if st.Exit == nil {
			var reply v1.HandlesReply
			fds, err := s.call(ctx, v1.MethodHandles, v1.HandlesRequest{Container: st.ID}, nil, &reply)
			if err != nil {
				all = append(all, fmt.Errorf("container %s: %w", st.ID, err))
			}
			e.names, e.handles = reply.Names, byName(reply.Names, fds)
		}
		p.mu.Lock()
		if early := p.containers[st.ID]; early != nil && early.exited {
			e.exited = true
		}
		if half := p.containers[st.ID]; half != nil {
			half.close()
		}
		p.containers[st.ID] = e
		p.mu.Unlock()
	}
	return errors.Join(all...)
}

// SetStatic tells the pool what an adopting shim would have to know of a recovered container (it is in the
// daemon's records, not in the shim's answer). If the shim has died since it answered, its successor adopts the container
// now.
func (p *Pool) SetStatic(c v1.Container, oci *v1.OCIRuntime) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[c.ID]
	if e == nil {
		return
	}
	e.static, e.oci = c, oci
	if !e.homeless {
		return
	}
	e.homeless = false
	late := e.copied()
	p.wg.Go(func() {
		defer late.close()
		ctx, cancel := context.WithTimeout(context.Background(), takeLimit) //nolint:gosec // detached on purpose
		defer cancel()
		s := late.shim
		s.life.RLock() // the successor is there, or nobody
		defer s.life.RUnlock()
		if err := s.adoptContainer(ctx, late); err != nil {
			p.insist(s, "container", c.ID, err)
		}
	})
}

// watch waits for the end of a connection and makes the shim reachable again: by a new connection if the process
// lives, else by a new process that adopts.
func (p *Pool) watch(s *shim, ended <-chan struct{}) {
	<-ended
	p.mu.Lock()
	closed := p.closed || p.shims[s.id] != s
	p.mu.Unlock()
	if closed {
		return
	}
	wait := 5 * time.Millisecond // the kernel closes a dying process's sockets before its pidfd turns readable
	for ; !p.reach(s); wait = min(2*wait, 10*time.Second) {
		if wait > time.Second {
			p.log.Error("shim is not reached; it is tried on and on", "shim", s.id, "alive", s.alive(), "again", wait)
		}
		select {
		case <-p.stop:
			return
		case <-time.After(wait):
		}
	}
}

// reach makes one try to have a shim back.
func (p *Pool) reach(s *shim) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) //nolint:gosec // detached on purpose
	defer cancel()
	if !s.alive() {
		return p.replace(ctx, s)
	}
	hello, err := s.connect(ctx)
	if err != nil {
		return false
	}
	p.resync(hello)
	p.watchExecs(s)
	return true
}

// replace starts a new process for a shim that died and gives it all the old one had. It says whether there is one now, or
// need be none.
func (p *Pool) replace(ctx context.Context, s *shim) bool {
	s.life.Lock() // the new process may die in turn
	defer s.life.Unlock()
	start := time.Now()
	p.watchExecs(s)
	pods, containers := p.holdings(s)
	if len(pods) == 0 && len(containers) == 0 {
		p.mu.Lock()
		delete(p.shims, s.id)
		maps.DeleteFunc(p.pods, func(_ string, e *podEntry) bool { return e.shim == s }) // only asked for: it had none
		p.mu.Unlock()
		p.discard(s)
		p.log.Info("empty shim is gone", "shim", s.id)
		return true
	}
	p.mu.Lock()
	s.profiles, s.draining = map[string]bool{}, false // the new process is of today's build
	p.mu.Unlock()
	hello, err := p.again(ctx, s)
	if err != nil {
		p.log.Error("shim not replaced; its containers run without supervision", "shim", s.id, "error", err)
		for _, e := range pods {
			e.close()
		}
		for _, e := range containers {
			e.close()
		}
		return false
	}
	p.handOver(s, pods, containers)
	p.log.Warn("shim died and was replaced", "shim", s.id, "pid", hello.Pid, "pods", len(pods), "containers", len(containers), "took", time.Since(start))
	return true
}

// again starts a new process for a shim. One that dies at once, or does not answer, is ended and followed by another.
func (p *Pool) again(ctx context.Context, s *shim) (hello *v1.HelloReply, err error) {
	for range 3 {
		if err = p.exec(s); err == nil {
			hello, err = s.connect(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return hello, err
		}
		// Whoever is born into a group that was killed once is killed (seen with Linux 6.18): the next one gets a new group.
		if kerr := errors.Join(p.cfg.Cgroups.Kill(s.group()), p.cfg.Cgroups.Remove(s.group())); kerr != nil {
			return nil, errors.Join(err, kerr)
		}
	}
	return hello, err
}

// holdings are copies of a shim's entries, with descriptors of their own: a pod may be removed meanwhile.
func (p *Pool) holdings(s *shim) (pods map[string]*podEntry, containers map[string]*containerEntry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pods, containers = map[string]*podEntry{}, map[string]*containerEntry{}
	for id, e := range p.pods {
		if e.shim == s && !e.asked { // one that is only asked for is asked for again, by its caller
			pods[id] = e.copied()
		}
	}
	for id, e := range p.containers {
		if e.shim == s && !e.exited {
			e.homeless = e.static.ID == ""
			containers[id] = e.copied()
		}
	}
	return pods, containers
}

func (s *shim) adoptPod(ctx context.Context, id string, e *podEntry) error {
	req := v1.AdoptPod{ID: id, InitPid: e.initPid}
	var fds []*os.File
	for _, kind := range e.order {
		if f := e.ns[kind]; f != nil {
			req.Namespaces = append(req.Namespaces, kind)
			fds = append(fds, f)
		}
	}
	if e.init != nil {
		fds = append(fds, e.init)
	}
	_, err := s.client().Call(ctx, v1.MethodAdoptPod, req, fds, nil)
	return err
}

func (s *shim) adoptContainer(ctx context.Context, e *containerEntry) error {
	req := v1.AdoptContainer{Container: e.static, Pid: e.pid, StartedAt: e.started, OCI: e.oci}
	var fds []*os.File
	for _, name := range e.names {
		if f := e.handles[name]; f != nil {
			req.Handles = append(req.Handles, name)
			fds = append(fds, f)
		}
	}
	_, err := s.client().Call(ctx, v1.MethodAdoptContainer, req, fds, nil)
	return err
}
