package shims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

type containerEntry struct {
	shim    *shim
	static  v1.Container
	oci     *v1.OCIRuntime
	pid     int
	started time.Time
	names   []string
	handles map[string]*os.File
	exited  bool
	last    *v1.Exit // its end as this process saw it, which has collected it
	// homeless says that a shim was replaced before anybody knew static: the successor does not have the container yet.
	homeless bool
}

// copied is an entry with descriptors of its own. The pool's mu is held.
func (e *containerEntry) copied() *containerEntry {
	c := *e
	c.handles = duplicates(e.handles)
	return &c
}

func (e *containerEntry) close() {
	for _, f := range e.handles {
		_ = f.Close()
	}
}

// Started is what Start tells of a running container.
type Started struct {
	Pid  int
	At   time.Time
	Shim string
}

// Start starts a container in its pod's shim.
func (p *Pool) Start(ctx context.Context, req v1.Start, groups *cgroup.Handles) (Started, error) {
	p.mu.Lock()
	pod := p.pods[req.Pod]
	p.mu.Unlock()
	if pod == nil || pod.asked {
		return Started{}, errs.FailedPrecondition.Errorf("pod %s has no supervisor: it is stopped", req.Pod)
	}
	s := pod.shim
	if err := p.give(ctx, s, req.Seccomp); err != nil {
		return Started{}, err
	}
	req.Cgroups = announce(groups)
	var reply v1.StartReply
	err := s.enter(ctx, v1.MethodStart, req, files(groups), &reply, func(fds []*os.File) {
		e := &containerEntry{shim: s, static: req.Container, oci: req.OCI, pid: reply.Pid, started: reply.StartedAt, names: reply.Handles, handles: byName(reply.Handles, fds)}
		p.mu.Lock()
		defer p.mu.Unlock()
		if old := p.containers[req.ID]; old != nil { // its exit event came first
			e.exited = old.exited
		}
		p.containers[req.ID] = e
	})
	return Started{Pid: reply.Pid, At: reply.StartedAt, Shim: s.id}, err
}

// Pipes are the inodes of a container's output, by handle. See Rescue.
func (p *Pool) Pipes(id string) map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil {
		return nil
	}
	return inodes(map[string]*os.File{v1.HandleStdout: e.handles[v1.HandleStdout], v1.HandleStderr: e.handles[v1.HandleStderr]})
}

// Signal sends a signal to a container's init, by its pidfd: no shim is asked and no pid can be mistaken.
// NotFound: the pool does not know the container. A process that is gone is fine.
func (p *Pool) Signal(id string, sig unix.Signal) error {
	return p.with(id, v1.HandlePidfd, func(f *os.File) error {
		if err := unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal container %s: %w", id, err)
		}
		return nil
	})
}

// with uses one of the pool's descriptors while nobody can close it: its number might be another container's by
// then. use must not block.
func (p *Pool) with(id, name string, use func(*os.File) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil || e.handles[name] == nil {
		return errs.NotFound.Errorf("container %s has no %s", id, name)
	}
	return use(e.handles[name])
}

// dropHandle closes the pool's duplicate of one descriptor.
func (p *Pool) dropHandle(id, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.containers[id]; e != nil && e.handles[name] != nil {
		_ = e.handles[name].Close()
		delete(e.handles, name)
	}
}

// Console is a duplicate of the terminal of a container that has one, the caller's to close.
func (p *Pool) Console(id string) (own *os.File, err error) {
	err = p.with(id, v1.HandleConsole, func(f *os.File) error {
		own, err = duplicate(f)
		return err
	})
	return own, err
}

// Dead says whether a container's init process has ended, whatever its shim has told so far. A container that
// the pool does not know is dead.
func (p *Pool) Dead(id string) bool {
	dead := true
	_ = p.with(id, v1.HandlePidfd, func(f *os.File) error { // unknown is dead
		dead = readable(f)
		return nil
	})
	return dead
}

// ReopenLog makes the shim continue a container's log in a new file.
func (p *Pool) ReopenLog(ctx context.Context, id string) error {
	s, err := p.shimOf(id)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, v1.MethodReopenLog, v1.ContainerRef{ID: id}, nil, nil)
	return err
}

// Attach hands streams (by the names of proto/shim/v1) to a container's shim. The files stay the caller's.
func (p *Pool) Attach(ctx context.Context, id string, names []string, streams []*os.File) error {
	s, err := p.shimOf(id)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, v1.MethodAttach, v1.Attach{Container: id, Stdio: names}, streams, nil)
	return err
}

func (p *Pool) shimOf(id string) (*shim, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil {
		return nil, errs.NotFound.Errorf("container %s has no supervisor", id)
	}
	return e.shim, nil
}

// Delete makes a container's shim and the pool forget it. An unknown one is fine.
func (p *Pool) Delete(ctx context.Context, id string) error {
	s, err := p.shimOf(id)
	if err != nil {
		return nil //nolint:nilerr // nothing to forget
	}
	_, err = s.call(ctx, v1.MethodDelete, v1.ContainerRef{ID: id}, nil, nil)
	if err != nil && !errors.Is(err, errs.Unavailable) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.containers[id]; e != nil {
		e.close()
		delete(p.containers, id)
	}
	return err
}
