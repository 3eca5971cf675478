// Package reap collects every child of the shim, its own and the orphans that come to it as a subreaper, and tells
// who asked for one how it ended.
//
// There is one loop for all: SIGCHLD, then wait4(-1) until nothing is left. A child is entered under the lock
// that the loop takes, in the same hold as the clone that makes it, so an exit can not be met before its entry.
// Orphans nobody knows are dropped, but the last few are remembered, because an OCI runtime tells the pid of what
// it left behind only after the fact.
//
// The package must not be used in a process that also uses os/exec: the loop would take its children.
package reap

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// remembered is how many orphans' ends are kept for a later Adopt.
const remembered = 64

// fresh is how long: a handover takes milliseconds, and the number may soon be another process's.
const fresh = 5 * time.Second

// Status is how a process ended.
type Status struct {
	Code   int // exit status when Signal is 0
	Signal int
	At     time.Time
}

// Process is a child that somebody waits for.
type Process struct {
	Pid    int
	done   chan struct{}
	status Status
	notify func(Status)
}

// Done is closed when the process has ended and was collected.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is how it ended; valid once Done is closed.
func (p *Process) Status() Status { return p.status }

type orphan struct {
	pid    int
	status Status
}

// Reaper is the loop. Use New.
type Reaper struct {
	mu      sync.Mutex
	procs   map[int]*Process
	orphans []orphan
}

// New makes a reaper; Run starts it.
func New() *Reaper { return &Reaper{procs: map[int]*Process{}} }

// Fork calls clone, which makes a child and returns its pid, and enters that child. notify, if not nil, is called
// once, from the loop and without the lock, when the child has ended.
func (r *Reaper) Fork(clone func() (int, error), notify func(Status)) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := clone()
	if err != nil {
		return nil, err
	}
	r.forget(pid)
	p := &Process{Pid: pid, done: make(chan struct{}), notify: notify}
	r.procs[pid] = p
	return p, nil
}

// forget drops what is remembered of an orphan whose number has a new owner.
func (r *Reaper) forget(pid int) {
	r.orphans = slices.DeleteFunc(r.orphans, func(o orphan) bool { return o.pid == pid })
}

// Adopt enters a child that somebody else made and that came to this process as an orphan. If it has been
// collected already, the Process is ended at once.
func (r *Reaper) Adopt(pid int, notify func(Status)) *Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &Process{Pid: pid, done: make(chan struct{}), notify: notify}
	for i, o := range r.orphans {
		if o.pid == pid && time.Since(o.status.At) < fresh {
			r.orphans = append(r.orphans[:i], r.orphans[i+1:]...)
			p.status = o.status
			close(p.done)
			if notify != nil {
				go notify(o.status)
			}
			return p
		}
	}
	r.procs[pid] = p
	return p
}

// OnExit sets what is called when p has ended; if it has, that is called at once in a new goroutine. It replaces
// the function given before.
func (r *Reaper) OnExit(p *Process, notify func(Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-p.done:
		go notify(p.status)
	default:
		p.notify = notify
	}
}

// Forget stops waiting for a process that turned out not to be a child.
func (r *Reaper) Forget(p *Process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.procs[p.Pid] == p {
		delete(r.procs, p.Pid)
	}
}

// Run collects children until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	defer signal.Stop(ch)
	for {
		r.collect()
		select {
		case <-ch:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Reaper) collect() {
	for {
		p, ok := r.one()
		if !ok {
			return
		}
		if p != nil && p.notify != nil {
			p.notify(p.status)
		}
	}
}

// one collects one child. It returns nil for an orphan, and false when there is nothing to collect.
func (r *Reaper) one() (*Process, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws unix.WaitStatus
	pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
	for errors.Is(err, unix.EINTR) {
		pid, err = unix.Wait4(-1, &ws, unix.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return nil, false
	}
	st := Status{At: time.Now()}
	if ws.Signaled() {
		st.Signal = int(ws.Signal())
	} else {
		st.Code = ws.ExitStatus()
	}
	p := r.procs[pid]
	if p == nil {
		if len(r.orphans) == remembered {
			r.orphans = append(r.orphans[:0], r.orphans[1:]...)
		}
		r.orphans = append(r.orphans, orphan{pid: pid, status: st})
		return nil, true
	}
	delete(r.procs, pid)
	p.status = st
	close(p.done)
	return p, true
}
