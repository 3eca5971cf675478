package supervisor

import (
	"context"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
)

// pod is a set of namespaces the shim holds.
type pod struct {
	id      string
	ready   chan struct{} // closed when made, or when making it failed
	err     error
	kinds   []string
	files   []*os.File
	initPid int
	init    *os.File // pidfd
}

func (p *pod) state() v1.PodState {
	return v1.PodState{ID: p.id, Namespaces: p.kinds, InitPid: p.initPid}
}

func (p *pod) close() {
	closeAll(p.files)
	if p.init != nil {
		_ = p.init.Close()
	}
}

// dups duplicates all descriptors, because the pod may be removed while they are sent.
func (p *pod) dups() (lent, error) {
	all := slices.Clone(p.files)
	if p.init != nil {
		all = append(all, p.init)
	}
	var files lent
	for _, f := range all {
		d, err := dupFd(int(f.Fd()))
		if err != nil {
			files.Sent()
			return nil, err
		}
		files = append(files, d)
	}
	return files, nil
}

// lent are descriptors that are closed when the reply they belong to is out.
type lent []*os.File

// Sent implements what proto/shim/v1 looks for in a reply.
func (l lent) Sent() { closeAll(l) }

type runPodReply struct {
	v1.RunPodReply
	lent
}

type startReply struct {
	v1.StartReply
	lent
}

type execReply struct {
	v1.ExecReply
	lent
}

type handlesReply struct {
	v1.HandlesReply
	lent
}

// cut splits the cgroup descriptors off the front of fds.
func cut(c v1.Cgroups, fds []*os.File) (executor.Cgroups, []*os.File, error) {
	cg := executor.Cgroups{Unified: -1}
	if c.V1 < 0 || c.Count() > len(fds) {
		return cg, nil, errs.InvalidArgument.Errorf("%d cgroup descriptors announced, %d came", c.Count(), len(fds))
	}
	rest := fds
	if c.Unified {
		cg.Unified, rest = int(fds[0].Fd()), rest[1:]
	}
	for _, f := range rest[:c.V1] {
		cg.Tasks = append(cg.Tasks, int(f.Fd()))
	}
	return cg, rest[c.V1:], nil
}

// runPod makes a pod, or joins the request that makes it, or returns what is there.
func (s *Supervisor) runPod(ctx context.Context, r *v1.RunPod, fds []*os.File) (any, []*os.File, error) {
	defer closeAll(fds)
	if r.ID == "" {
		return nil, nil, errs.InvalidArgument.Errorf("pod without an id")
	}
	cg, _, err := cut(r.Cgroups, fds)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	p := s.pods[r.ID]
	if p == nil {
		err = s.givenUp(r.ID)
		if s.draining {
			err = errs.FailedPrecondition.Errorf("the shim is draining and takes no new pods")
		}
		if err != nil {
			s.mu.Unlock()
			return nil, nil, err
		}
	}
	if p != nil {
		s.mu.Unlock()
		select {
		case <-p.ready:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		return podReply(p)
	}
	p = &pod{id: r.ID, ready: make(chan struct{})}
	s.pods[r.ID] = p
	s.mu.Unlock()
	made, err := s.cfg.Runtime.Pod(ctx, r, cg)
	s.mu.Lock()
	if err != nil {
		p.err = err
		delete(s.pods, r.ID)
	} else {
		p.kinds, p.files = made.Kinds, made.Files
		if made.Init != nil {
			p.initPid, p.init = made.Init.Pid, made.Init.Pidfd
		}
	}
	close(p.ready)
	s.mu.Unlock()
	return podReply(p)
}

func podReply(p *pod) (any, []*os.File, error) {
	if p.err != nil {
		return nil, nil, p.err
	}
	files, err := p.dups()
	if err != nil {
		return nil, nil, err
	}
	return &runPodReply{RunPodReply: v1.RunPodReply{Namespaces: p.kinds, InitPid: p.initPid}, lent: files}, files, nil
}

// removePod ends a pod's init and lets go of its namespaces. One that is being made is waited for; one that is not there is not
// made for a minute.
func (s *Supervisor) removePod(ctx context.Context, id string) error {
	s.mu.Lock()
	p := s.pods[id]
	if p != nil {
		s.mu.Unlock()
		select {
		case <-p.ready:
		case <-ctx.Done():
			return errs.Aborted.Errorf("pod %s is being made: %w", id, ctx.Err())
		}
		s.mu.Lock()
		if s.pods[id] != p { // it failed, or was removed
			p = nil
		}
	}
	if p == nil {
		s.giveUp(id)
		s.mu.Unlock()
		return nil
	}
	for _, c := range s.containers {
		if c.cfg.Pod == id && c.exit == nil {
			s.mu.Unlock()
			return errs.FailedPrecondition.Errorf("pod %s: container %s still runs", id, c.cfg.ID)
		}
	}
	delete(s.pods, id)
	s.mu.Unlock()
	if p.init != nil {
		_ = unix.PidfdSendSignal(int(p.init.Fd()), unix.SIGKILL, nil, 0)
	}
	p.close()
	return nil
}

// adoptPod takes over the namespaces of a pod whose shim died.
func (s *Supervisor) adoptPod(r *v1.AdoptPod, fds []*os.File) error {
	want := len(r.Namespaces)
	if r.InitPid != 0 {
		want++
	}
	if r.ID == "" || len(fds) != want {
		closeAll(fds)
		return errs.InvalidArgument.Errorf("adopt pod %q: %d descriptors, want %d", r.ID, len(fds), want)
	}
	p := &pod{id: r.ID, ready: make(chan struct{}), kinds: r.Namespaces, files: fds[:len(r.Namespaces)], initPid: r.InitPid}
	if r.InitPid != 0 {
		p.init = fds[len(fds)-1]
	}
	close(p.ready)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[r.ID] != nil { // a repeated request
		p.close()
		return nil
	}
	if err := s.givenUp(r.ID); err != nil {
		p.close()
		return err
	}
	s.pods[r.ID] = p
	return nil
}

// join finds the pod's namespace descriptors of the kinds asked for.
func (p *pod) join(kinds []string) (map[string]int, error) {
	m := map[string]int{}
	for _, kind := range kinds {
		i := slices.Index(p.kinds, kind)
		if i < 0 {
			return nil, errs.FailedPrecondition.Errorf("pod %s has no %s namespace", p.id, kind)
		}
		m[kind] = int(p.files[i].Fd())
	}
	return m, nil
}
