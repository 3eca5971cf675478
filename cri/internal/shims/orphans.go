package shims

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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
	suspects := map[int]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			p.collectKnown()
		case <-tick.C:
			p.collectKnown()
			suspects = collectStrangers(suspects)
		}
	}
}

// collectKnown collects every dead process that the pool has a pidfd of, if it is a child, and keeps how it ended.
func (p *Pool) collectKnown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.containers {
		e.collect()
	}
	for _, e := range p.pods {
		collect(e.init)
	}
	for _, e := range p.execs {
		if x, ok := collect(e.pidfd); ok {
			e.end(x)
		}
	}
}

// collect makes the end of a container known that has come to this process when its shim died.
func (e *containerEntry) collect() {
	if x, ok := collect(e.handles[v1.HandlePidfd]); ok {
		e.last = &x
	}
}

// collect collects a process, if it is a dead child of this one: nearly always it is its shim's.
func collect(pidfd *os.File) (v1.Exit, bool) {
	if pidfd == nil {
		return v1.Exit{}, false
	}
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &info, unix.WEXITED|unix.WNOHANG, nil)
	if err != nil || info.Signo != int32(unix.SIGCHLD) {
		return v1.Exit{}, false
	}
	return ofChild(&info), true
}

// collectStrangers collects the dead children that were among the suspects of the last look, and returns the others.
func collectStrangers(suspects map[int]bool) map[int]bool {
	next := map[int]bool{}
	for _, pid := range children() {
		switch {
		case !dead(pid):
		case suspects[pid]:
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // gone is what it shall be
		default:
			next[pid] = true
		}
	}
	return next
}

// children are the pids of this process's children; none on a kernel without CONFIG_PROC_CHILDREN.
func children() (pids []int) {
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	for _, f := range files {
		b, err := os.ReadFile(f) //nolint:gosec // of this process
		if err != nil {
			continue // a thread that has ended
		}
		for word := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// dead tells whether a child has ended, without collecting it.
func dead(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo == int32(unix.SIGCHLD)
}
