package shims

import (
	"context"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

func ioctl(fd int, request uintptr, arg *uint64) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg))); e != 0 {
		return e
	}
	return nil
}

type execEntry struct {
	shim      *shim
	container string
	id        string
	pidfd     *os.File
	once      sync.Once
	done      chan struct{} // closed when exit is there
	exit      v1.Exit
}

// end is told by the supervisor, or found in the kernel; the first word counts.
func (e *execEntry) end(x v1.Exit) {
	e.once.Do(func() {
		e.exit = x
		close(e.done)
	})
}

// Process is a running exec. Close it when done.
type Process struct {
	Pid     int
	Console *os.File // terminal, or nil; closed by Close
	pool    *Pool
	entry   *execEntry
}

// Exec starts a process in a container. stdio are the process's own ends, named in req.Stdio; they stay the
// caller's.
func (p *Pool) Exec(ctx context.Context, req v1.Exec, groups *cgroup.Handles, stdio []*os.File) (*Process, error) {
	s, err := p.shimOf(req.Container)
	if err != nil {
		return nil, err
	}
	if err := p.give(ctx, s, req.Seccomp); err != nil {
		return nil, err
	}
	req.Cgroups = announce(groups)
	var reply v1.ExecReply
	e := &execEntry{shim: s, container: req.Container, id: req.ID, done: make(chan struct{})}
	x := &Process{pool: p, entry: e}
	p.mu.Lock()
	p.execs[e.key()] = e // its end may be told before the answer to Exec
	p.mu.Unlock()
	err = s.enter(ctx, v1.MethodExec, req, append(files(groups), stdio...), &reply, func(fds []*os.File) {
		handles := byName(reply.Handles, fds)
		p.mu.Lock()
		defer p.mu.Unlock()
		e.pidfd = handles[v1.HandlePidfd]
		x.Pid, x.Console = reply.Pid, handles[v1.HandleConsole]
	})
	if err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

func (e *execEntry) key() string { return e.container + "/" + e.id }

// Wait returns how the process ended, or ctx's error.
func (x *Process) Wait(ctx context.Context) (v1.Exit, error) {
	select {
	case <-x.entry.done:
		return x.entry.exit, nil
	case <-ctx.Done():
		return v1.Exit{}, ctx.Err()
	}
}

// Signal sends a signal to the process itself.
func (x *Process) Signal(sig unix.Signal) error {
	if x.entry.pidfd == nil {
		return nil
	}
	return unix.PidfdSendSignal(int(x.entry.pidfd.Fd()), sig, nil, 0)
}

// Close forgets the process, which goes on if it still runs.
func (x *Process) Close() {
	x.pool.mu.Lock()
	defer x.pool.mu.Unlock()
	delete(x.pool.execs, x.entry.key())
	if x.entry.pidfd != nil {
		_ = x.entry.pidfd.Close()
	}
	if x.Console != nil {
		_ = x.Console.Close()
	}
}

// watchExecs gives the execs of a shim that died, or whose connection broke, their end from the kernel, as soon as each has
// one: nobody may be there to tell it.
func (p *Pool) watchExecs(s *shim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.execs {
		if e.shim != s || e.pidfd == nil {
			continue
		}
		fd, err := unix.FcntlInt(e.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			p.log.Error("exec of a dead shim is lost", "container", e.container, "error", err)
			continue
		}
		own := os.NewFile(uintptr(fd), "pidfd")
		p.wg.Go(func() {
			defer own.Close() //nolint:errcheck // a pidfd
			for !readable(own) && !p.isClosed() {
				time.Sleep(10 * time.Millisecond)
			}
			x := exitOf(own)
			for end := time.Now().Add(uncollected); x.Unknown && time.Now().Before(end) && !p.isClosed(); x = exitOf(own) {
				time.Sleep(5 * time.Millisecond)
			}
			e.end(x)
		})
	}
}

func readable(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

func (p *Pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}
