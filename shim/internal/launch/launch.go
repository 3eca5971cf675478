// Package launch makes processes: it runs a plan (package plan) in a raw clone3 child without CLONE_VM, ending in
// execve, without any helper program.
//
// All clones come from one locked thread that never ends. It lives in a mount namespace of its own with a single
// mount, so that a child's CLONE_NEWNS copies one mount however many the host has. It enters those of a process's v1
// cgroups that charge it for its birth, and for a process that joins an existing pid namespace that namespace (setns of
// CLONE_NEWPID concerns the next child only), clones, and goes home. The v1 cgroups that can stop their members the child
// enters by itself, first of all: the thread works for other pods too. Everything else is the child's plan.
//
// The package knows nothing of containers. It uses the Go runtime's fork hooks by linkname, as gVisor does.
package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/plan"
	"github.com/berth-project/berth/shim/internal/reap"
)

// Request is a process to make.
type Request struct {
	Plan *plan.Plan
	// Flags are CLONE_NEW* flags of the clone itself.
	Flags uint64
	// Cgroup is the directory in the unified hierarchy to be born in, or -1.
	Cgroup int
	// Tasks are v1 `tasks` files, open for writing.
	Tasks []int
	// PidNS is a pidfd or a namespace descriptor whose pid namespace the process is born in, or -1.
	PidNS int
	// Console says that the plan sends a console.
	Console bool
}

// Launcher is the thread that clones. Use New, then Run.
type Launcher struct {
	reaper *reap.Reaper
	jobs   chan func()
	home   *home

	mu    sync.Mutex
	pages []*page
}

// New makes a launcher whose children r collects.
func New(r *reap.Reaper) (*Launcher, error) {
	h, err := openHome()
	if err != nil {
		return nil, err
	}
	return &Launcher{reaper: r, jobs: make(chan func()), home: h}, nil
}

// Run is the cloning thread. It calls ready once when it can take requests, and returns when ctx ends.
func (l *Launcher) Run(ctx context.Context, ready func()) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
	if unix.Gettid() == unix.Getpid() {
		// the main thread is what /proc/self shows, so it must stay in the host's mount namespace
		other := make(chan error, 1)
		go func() { other <- l.Run(ctx, ready) }()
		return <-other
	}
	if err := enterMinimal(); err != nil {
		return fmt.Errorf("make the launcher's mount namespace: %w", err)
	}
	ready()
	for {
		var again <-chan time.Time
		if l.home.astray() { // it holds a container's v1 groups
			again = time.After(20 * time.Millisecond)
		}
		select {
		case job := <-l.jobs:
			job()
		case <-again:
			_ = l.home.settle() // or in the next round
		case <-ctx.Done():
			return nil
		}
	}
}

// Launch clones and returns as soon as the child exists. The caller must call Wait, and Release once for each
// Barrier of the plan.
func (l *Launcher) Launch(ctx context.Context, req *Request) (*Child, error) {
	c := &Child{launcher: l, plan: req.Plan}
	o, err := c.pipes(req.Console)
	if err != nil {
		return nil, err
	}
	c.page = l.takePage()
	ahead, itself, err := l.home.split(req.Tasks)
	var prog *program
	if err == nil {
		prog, err = assemble(req.Plan, o, c.page, itself)
	}
	if err != nil {
		o.close()
		c.drop()
		return nil, err
	}
	c.first, c.joins = prog.first, len(itself)
	own := *req
	own.Tasks = ahead
	result := make(chan error, 1)
	job := func() { result <- l.clone(&own, prog, c) }
	select {
	case l.jobs <- job:
		err = <-result
	case <-ctx.Done():
		err = ctx.Err()
	}
	o.close()
	runtime.KeepAlive(prog)
	if err != nil {
		c.drop()
		return nil, err
	}
	return c, nil
}

// clone runs on the cloning thread.
func (l *Launcher) clone(req *Request, prog *program, c *Child) error {
	if err := l.home.settle(); err != nil {
		return err
	}
	defer l.home.leave(req.Tasks)
	if err := l.home.enter(req.Tasks); err != nil {
		return err
	}
	if req.PidNS >= 0 {
		if err := l.home.enterPidNS(req.PidNS); err != nil {
			if errors.Is(err, unix.ESRCH) {
				return errs.FailedPrecondition.Errorf("join pid namespace: %w", err)
			}
			return fmt.Errorf("join pid namespace: %w", err)
		}
	}
	var pidfd int32
	ca := &cloneArgs{
		flags: req.Flags | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND, pidfd: uint64(uintptr(unsafe.Pointer(&pidfd))), exitSignal: uint64(unix.SIGCHLD),
	}
	if req.Cgroup >= 0 {
		ca.flags |= unix.CLONE_INTO_CGROUP
		ca.cgroup = uint64(req.Cgroup) //nolint:gosec // a descriptor
	}
	var err error
	c.proc, err = l.reaper.Fork(func() (int, error) {
		beforeFork()
		pid, errno := spawn(ca, &prog.steps[0], len(prog.steps), c.page)
		afterFork()
		if errno != 0 {
			return 0, errno
		}
		return int(pid), nil //nolint:gosec // pids are 22 bits
	}, nil)
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	c.Pid = c.proc.Pid
	c.Pidfd = os.NewFile(uintptr(pidfd), "pidfd") //nolint:gosec // set by the kernel
	runtime.KeepAlive(ca)
	return nil
}

// takePage gives a zeroed page of memory that is shared with children.
func (l *Launcher) takePage() *page {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.pages); n > 0 {
		pg := l.pages[n-1]
		l.pages = l.pages[:n-1]
		pg.reset()
		return pg
	}
	p, err := unix.MmapPtr(-1, 0, nil, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(fmt.Sprintf("map a page: %v", err)) // out of memory
	}
	pg := (*page)(p)
	pg.reset()
	return pg
}

// reset clears the page and makes every slot an invalid descriptor.
func (pg *page) reset() {
	*pg = page{}
	for i := wordSlot0; i < len(pg); i++ {
		pg[i] = -1
	}
}

func (l *Launcher) givePage(pg *page) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pages) < 8 {
		l.pages = append(l.pages, pg)
		return
	}
	l.unmap(pg)
}

func (l *Launcher) unmap(pg *page) {
	_ = unix.MunmapPtr(unsafe.Pointer(pg), pageSize)
}
