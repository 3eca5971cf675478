package shims

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

type podEntry struct {
	shim *shim
	// asked says that the shim was asked to make the pod and has not said that it did: it may have, or may be about to. There
	// are no descriptors then.
	asked   bool
	ns      map[string]*os.File
	order   []string
	initPid int
	init    *os.File
}

// copied is an entry with descriptors of its own. The pool's mu is held.
func (e *podEntry) copied() *podEntry {
	c := *e
	c.ns = duplicates(e.ns)
	if e.init != nil {
		c.init = duplicates(map[string]*os.File{"": e.init})[""]
	}
	return &c
}

func (e *podEntry) close() {
	for _, f := range e.ns {
		_ = f.Close()
	}
	if e.init != nil {
		_ = e.init.Close()
	}
}

// place chooses the shim of a new pod, starting one if all are full.
func (p *Pool) place(ctx context.Context) (*shim, error) {
	p.spawn.Lock()
	defer p.spawn.Unlock()
	p.mu.Lock()
	load := map[*shim]int{}
	for _, e := range p.pods {
		load[e.shim]++
	}
	var best *shim
	for _, s := range p.shims {
		n := load[s] + s.reserved
		if s.draining || n >= p.cfg.PodsPer || !s.well() {
			continue
		}
		if best == nil || n > load[best]+best.reserved { // fill one before the next
			best = s
		}
	}
	if best != nil {
		best.reserved++
		p.mu.Unlock()
		return best, nil
	}
	p.mu.Unlock()
	s, err := p.start(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.reserved++
	return s, nil
}

// Identities are the inodes of a pod's own namespaces, by kind, by which they are known again. See Rescue.
func (p *Pool) Identities(pod string) map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.pods[pod]
	if e == nil || e.asked {
		return nil
	}
	return inodes(e.ns)
}

// RunPod makes a pod's namespaces in some shim and keeps their descriptors. On an error the shim may have made the pod, or make
// it later: RemovePod asks it not to.
func (p *Pool) RunPod(ctx context.Context, req v1.RunPod, groups *cgroup.Handles) error {
	s, err := p.place(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	s.reserved--
	if p.pods[req.ID] == nil {
		p.pods[req.ID] = &podEntry{shim: s, asked: true}
	}
	p.mu.Unlock()
	req.Cgroups = announce(groups)
	var reply v1.RunPodReply
	var short error
	err = s.enter(ctx, v1.MethodRunPod, req, files(groups), &reply, func(fds []*os.File) { short = p.keepPod(s, req.ID, &reply, fds) })
	if err = errors.Join(err, short); err != nil {
		return fmt.Errorf("shim %s: %w", s.id, err)
	}
	return nil
}

func (p *Pool) keepPod(s *shim, id string, reply *v1.RunPodReply, fds []*os.File) error {
	e := &podEntry{shim: s, ns: map[string]*os.File{}, order: reply.Namespaces, initPid: reply.InitPid}
	if len(fds) < len(reply.Namespaces) {
		closeAll(fds)
		return errs.Internal.Errorf("%d namespaces but %d descriptors", len(reply.Namespaces), len(fds))
	}
	for i, kind := range reply.Namespaces {
		e.ns[kind] = fds[i]
	}
	if rest := fds[len(reply.Namespaces):]; len(rest) > 0 {
		e.init = rest[0]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods[id] = e
	return nil
}

// Namespace is a duplicate of the descriptor of a pod's namespace, the caller's to close. NotFound: the pod, or its
// own namespace of that kind, is not there.
func (p *Pool) Namespace(pod, kind string) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.pods[pod]
	if e == nil || e.ns[kind] == nil {
		return nil, errs.NotFound.Errorf("pod %s has no %s namespace of its own", pod, kind)
	}
	return duplicate(e.ns[kind])
}

// RemovePod ends the shim's and the pool's hold on a pod. An unknown pod is fine. If the shim does not answer within
// the time of ctx, or refuses, the error says so and the pool's hold stays, so that a retry asks again.
func (p *Pool) RemovePod(ctx context.Context, id string) error {
	p.mu.Lock()
	e := p.pods[id]
	if e != nil && e.init != nil {
		_ = unix.PidfdSendSignal(int(e.init.Fd()), unix.SIGKILL, nil, 0) // gone already is fine
	}
	p.mu.Unlock()
	if e == nil {
		return nil
	}
	_, err := e.shim.call(ctx, v1.MethodRemovePod, v1.PodRef{ID: id}, nil, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && !errors.Is(err, errs.NotFound) && p.pods[id] != nil { // else it went with its shim
		return err
	}
	if p.pods[id] == e { // not a second removal's
		delete(p.pods, id)
		e.close()
	}
	return nil
}
