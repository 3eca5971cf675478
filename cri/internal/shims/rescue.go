package shims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Orphan is a container that runs although its shim and the daemon that would have replaced it were killed together. What
// both held is found again in the kernel.
type Orphan struct {
	Static  v1.Container
	OCI     *v1.OCIRuntime
	Pid     int
	Started time.Time
	Pipes   map[string]uint64 // inodes of its output, by handle
	Group   string            // its cgroup: a process is believed to be the container's if it is in there
}

// OrphanPod is a pod whose shim is gone. A pod without containers that run cannot be rescued: nothing holds its
// namespaces.
type OrphanPod struct {
	ID         string
	Namespaces map[string]uint64 // inodes of its own, by kind: what is found is believed if it is that one
	Net        string            // where its network namespace is bound
	Group      string            // the cgroup of the process that holds its pid namespace, if it has one
	Containers []Orphan
}

// Rescue gives a pod and its containers to a living shim, to the one that has the pod already if there is one: it was
// about to be given the containers too when its daemon died. It returns those that were found. Their input and their
// terminals ended with those who held the other end. FailedPrecondition: no container runs, or a namespace is not to be
// found.
func (p *Pool) Rescue(ctx context.Context, pod OrphanPod) ([]v1.ContainerState, error) {
	containers := map[string]*containerEntry{}
	for _, o := range pod.Containers {
		e, err := p.find(ctx, o)
		if err != nil {
			p.log.Warn("container not rescued", "container", o.Static.ID, "error", err)
			continue
		}
		containers[o.Static.ID] = e
	}
	if len(containers) == 0 {
		return nil, errs.FailedPrecondition.Errorf("pod %s has no process", pod.ID)
	}
	if err := p.entrust(ctx, pod, containers); err != nil {
		for _, c := range containers {
			c.close()
		}
		return nil, err
	}
	var states []v1.ContainerState
	for id, c := range containers {
		states = append(states, v1.ContainerState{ID: id, Pid: c.pid, StartedAt: c.started})
	}
	return states, nil
}

// find takes hold of a container's process and of its output.
func (p *Pool) find(ctx context.Context, o Orphan) (*containerEntry, error) {
	pidfd, err := p.pidfdIn(o.Group, o.Pid)
	if err != nil {
		return nil, err
	}
	e := &containerEntry{
		static: o.Static, oci: o.OCI, pid: o.Pid, started: o.Started,
		names: []string{v1.HandlePidfd}, handles: map[string]*os.File{v1.HandlePidfd: pidfd},
	}
	pipes, err := findPipes(ctx, p.cfg.Cgroups.Pids(o.Group), o.Pipes)
	for name, f := range pipes {
		e.names, e.handles[name] = append(e.names, name), f
	}
	if lost := len(o.Pipes) - len(pipes); lost > 0 || len(o.Pipes) == 0 && !o.Static.Terminal {
		p.log.Warn("a rescued container's output ends here: its pipe is closed, or not to be found", "container", o.Static.ID, "pipes", lost, "error", err)
	}
	return e, nil
}

// pidfdIn opens a process and then looks that it is in a cgroup: so it is the one that is meant, whatever the pid was
// used for meanwhile.
func (p *Pool) pidfdIn(group string, pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	if !slices.Contains(p.cfg.Cgroups.Pids(group), pid) || readable(pidfd) {
		_ = pidfd.Close()
		return nil, errs.NotFound.Errorf("process %d is not in %s", pid, group)
	}
	return pidfd, nil
}

// entrust gives containers to their pod's shim, or them and the pod to some shim. What is one of the pool's is given to a
// shim's successor as well, should it die meanwhile. A container that the shim does not take is offered again: it runs, and
// the pool has all there is of it.
func (p *Pool) entrust(ctx context.Context, pod OrphanPod, containers map[string]*containerEntry) error {
	e, held := p.held(pod.ID)
	if e == nil {
		var err error
		if e, err = p.findPod(pod, containers); err != nil {
			return err
		}
	}
	s, err := p.assign(ctx, pod.ID, e, containers)
	if err != nil {
		return err
	}
	defer s.life.RUnlock()
	if !held {
		if err := s.adoptPod(ctx, pod.ID, e); err != nil && !errors.Is(err, errs.Unavailable) {
			s.hung.Store(errors.Is(err, context.DeadlineExceeded))
			p.disown(pod.ID, e, containers)
			return fmt.Errorf("shim %s: %w", s.id, err)
		}
	}
	var wg sync.WaitGroup
	for id, c := range containers {
		wg.Go(func() {
			err := s.adoptContainer(ctx, c)
			if err == nil || errors.Is(err, errs.Unavailable) {
				return
			}
			s.hung.Store(errors.Is(err, context.DeadlineExceeded))
			p.insist(s, "container", id, err)
		})
	}
	wg.Wait()
	return nil
}

// held is a pod that the pool has, and whether its shim is there. One whose shim fell silent while it was asked, and then
// died, has its descriptors still.
func (p *Pool) held(id string) (e *podEntry, held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e = p.pods[id]; e == nil {
		return nil, false
	}
	if held = e.shim != nil && p.shims[e.shim.id] == e.shim; !held {
		delete(p.pods, id) // nobody's: it is given to another one
		e.shim = nil
	}
	return e, held
}

// assign makes a pod one of some shim's, if it is nobody's, and containers that shim's, which cannot be replaced until the
// caller lets go of its life. On an error nobody has the pod, and it is closed.
func (p *Pool) assign(ctx context.Context, id string, e *podEntry, containers map[string]*containerEntry) (*shim, error) {
	if s := e.shim; s != nil {
		s.life.RLock()
		p.enlist(s, id, e, containers)
		return s, nil
	}
	for ctx.Err() == nil {
		s, err := p.place(ctx)
		if err != nil {
			e.close()
			return nil, err
		}
		s.life.RLock()
		p.mu.Lock()
		s.reserved--
		there := p.shims[s.id] == s
		p.mu.Unlock()
		if there {
			p.enlist(s, id, e, containers)
			return s, nil
		}
		s.life.RUnlock() // it was killed, and had nothing to be replaced for
		time.Sleep(10 * time.Millisecond)
	}
	e.close()
	return nil, ctx.Err()
}

// enlist makes a pod and containers a shim's.
func (p *Pool) enlist(s *shim, id string, e *podEntry, containers map[string]*containerEntry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.shim, p.pods[id] = s, e
	for cid, c := range containers {
		if old := p.containers[cid]; old != nil { // of a shim that fell silent while it was asked, or its end came first
			c.exited, c.last = old.exited, old.last
			old.close()
		}
		c.shim, p.containers[cid] = s, c
	}
}

// disown takes back what enlist did.
func (p *Pool) disown(pod string, e *podEntry, containers map[string]*containerEntry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.close()
	delete(p.pods, pod)
	for id, c := range containers {
		if p.containers[id] == c {
			delete(p.containers, id)
		}
	}
}
