package shims

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

const (
	// strangersEvery is how often children that nobody here knows are looked for, and how long one must have been
	// dead: os/exec collects its own long before.
	strangersEvery = 2 * time.Second
	// uncollected is how long a dead process that is another's child may take to be collected by it. Until then the
	// kernel does not tell its exit code. Some machines' init looks once in a second or two.
	uncollected = 5 * time.Second
)

// becomeParent makes this process the parent of what its shims leave behind when they die.
func becomeParent() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// Collect collects the processes that dead shims left to this one, until ctx ends: they would stay zombies, and the
// kernel gives a process's exit code to the holders of its pidfd only when its parent has collected it. Children of
// os/exec are left to it.
func (p *Pool) Collect(ctx context.Context) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	tick := time.NewTicker(strangersEvery)
	defer tick.Stop()
	suspect := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			p.collectKnown()
		case <-tick.C:
			p.collectKnown()
			suspect = collectStranger(suspect)
		}
	}
}

// collectKnown collects every dead process that the pool has a pidfd of, if it is a child.
func (p *Pool) collectKnown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.containers {
		collect(e.handles[v1.HandlePidfd])
	}
	for _, e := range p.pods {
		collect(e.init)
	}
	for _, e := range p.execs {
		collect(e.pidfd)
	}
}

func collect(pidfd *os.File) {
	if pidfd != nil { // ECHILD: it is its shim's, as nearly always
		_ = unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), nil, unix.WEXITED|unix.WNOHANG, nil)
	}
}

// collectStranger collects a dead child if it was the suspect of the last look already, and returns the next one.
func collectStranger(suspect int) int {
	for {
		pid := deadChild()
		if pid == 0 || pid != suspect {
			return pid
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return 0
		}
	}
}

// deadChild is the pid of some child that has ended and was not collected, or 0.
func deadChild() int {
	var info struct { // siginfo_t of SIGCHLD, 128 bytes
		_   [4]int32
		Pid int32
		_   [27]int32
	}
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(info.Pid)
}
