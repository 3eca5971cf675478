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
	if pod == nil {
		return Started{}, errs.FailedPrecondition.Errorf("pod %s has no supervisor: it is stopped", req.Pod)
	}
	s := pod.shim
	if err := p.give(ctx, s, req.Seccomp); err != nil {
		return Started{}, err
	}
	req.Cgroups = announce(groups)
	var reply v1.StartReply
	fds, err := s.call(ctx, v1.MethodStart, req, files(groups), &reply)
	if err != nil {
		return Started{}, err
	}
	e := &containerEntry{shim: s, static: req.Container, oci: req.OCI, pid: reply.Pid, started: reply.StartedAt, names: reply.Handles, handles: byName(reply.Handles, fds)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.containers[req.ID]; old != nil { // its exit event came first
		e.exited = old.exited
	}
	p.containers[req.ID] = e
	return Started{Pid: reply.Pid, At: reply.StartedAt, Shim: s.id}, nil
}

// Signal sends a signal to a container's init, by its pidfd: no shim is asked and no pid can be mistaken.
// NotFound: the pool does not know the container. A process that is gone is fine.
func (p *Pool) Signal(id string, sig unix.Signal) error {
	f, err := p.handle(id, v1.HandlePidfd)
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

func (p *Pool) handle(id, name string) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil || e.handles[name] == nil {
		return nil, errs.NotFound.Errorf("container %s has no %s", id, name)
	}
	return e.handles[name], nil
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

// Console is the terminal of a container that has one; it stays the pool's.
func (p *Pool) Console(id string) (*os.File, error) { return p.handle(id, v1.HandleConsole) }

// Dead says whether a container's init process has ended, whatever its shim has told so far. A container that
// the pool does not know is dead.
func (p *Pool) Dead(id string) bool {
	f, err := p.handle(id, v1.HandlePidfd)
	if err != nil {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// ExitOf is what the kernel itself knows of the end of a dead container (PIDFD_INFO_EXIT, Linux 6.15).
func (p *Pool) ExitOf(id string) v1.Exit {
	f, err := p.handle(id, v1.HandlePidfd)
	if err != nil {
		return v1.Exit{Code: 255, Unknown: true, At: time.Now()}
	}
	return exitOf(f)
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
		for _, f := range e.handles {
			_ = f.Close()
		}
		delete(p.containers, id)
	}
	return err
}
