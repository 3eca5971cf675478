// Package executor runs OCI containers: it turns a runtime spec into a plan of system calls (pure, in the files
// compile_*.go), prepares what must come from the host's mount namespace (prepare_*.go), and has package launch
// carry it out. Nothing is ever exec'ed but the workload.
//
// It makes no cgroup and keeps no state of a container; its user (the supervisor) does that.
package executor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/launch"
	"github.com/berth-project/berth/shim/internal/plan"
	"github.com/berth-project/berth/shim/internal/podinit"
	"github.com/berth-project/berth/shim/internal/reap"
)

// Filter is a compiled seccomp profile.
type Filter struct {
	Code  string // struct sock_filter[]
	Flags uint   // SECCOMP_FILTER_FLAG_*
	// Profile is the source (runtime-spec linux.seccomp), for runtimes that compile it themselves.
	Profile []byte
}

// Cgroups are the descriptors of the cgroups to be born in. Unified is -1 if there is none.
type Cgroups struct {
	Unified int
	Tasks   []int
}

// Stdio are the descriptors that become 0, 1 and 2; -1 is the null device. Unused with a terminal.
type Stdio [3]int

// Start is a container to run. Descriptors stay the caller's.
type Start struct {
	ID      string
	Spec    *specs.Spec
	Filter  *Filter
	Rootfs  v1.Rootfs
	Cgroups Cgroups
	Join    map[string]int // pod namespaces to enter, by kind
	PidOf   int            // pidfd of the process whose pid namespace is entered, or -1
	Stdio   Stdio
}

// Exec is a further process in a container. Descriptors stay the caller's.
type Exec struct {
	ID      string // of the container
	Process *specs.Process
	Filter  *Filter
	Cgroups Cgroups
	Init    int // pidfd of the container's process
	// Namespaces are the CLONE_NEW* flags of the kinds that the container does not share with the host.
	Namespaces int
	Stdio      Stdio
}

// Process is a started process. Its descriptors are the caller's.
type Process struct {
	Pid     int
	Pidfd   *os.File
	Console *os.File // the terminal's master, if one was asked for
	Proc    *reap.Process
	Notes   []launch.Failure // what was asked for and could not be had, and is not worth a failure
}

// Executor is the port of this package. Use New.
type Executor struct {
	launcher *launch.Launcher
	host     *host
	image    *os.File // the pods' init
}

// New makes an executor on a running launcher.
func New(l *launch.Launcher) (*Executor, error) {
	h, err := openHost()
	if err != nil {
		return nil, err
	}
	image, err := podinit.Image()
	if err != nil {
		return nil, err
	}
	return &Executor{launcher: l, host: h, image: image}, nil
}

// Start runs a container. On an error nothing is left of it.
func (e *Executor) Start(ctx context.Context, s *Start) (*Process, error) {
	if err := validate(s, e.host); err != nil {
		return nil, err
	}
	in, err := e.prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	defer in.close()
	setHome(s.Spec.Process, in.rootfs)
	p, err := compileStart(s.Spec, in)
	if err != nil {
		return nil, err
	}
	req := &launch.Request{
		Plan: p, Cgroup: s.Cgroups.Unified, Tasks: s.Cgroups.Tasks, PidNS: -1, Console: s.Spec.Process.Terminal,
	}
	if in.newPid && !in.userns() {
		req.Flags |= unix.CLONE_NEWPID
	}
	if fd, ok := in.join["pid"]; ok {
		req.PidNS = fd
	}
	if s.PidOf >= 0 {
		req.PidNS = s.PidOf
	}
	return e.run(ctx, req, in.newPid && in.userns(), s.Spec.Process)
}

// Exec starts a further process in a container.
func (e *Executor) Exec(ctx context.Context, x *Exec) (*Process, error) {
	if err := validateProcess(x.Process, e.host); err != nil {
		return nil, err
	}
	if root, err := openRoot(x.Init); err == nil {
		setHome(x.Process, root)
		_ = unix.Close(root)
	}
	p, err := compileExec(x, e.host)
	if err != nil {
		return nil, err
	}
	req := &launch.Request{
		Plan: p, Cgroup: x.Cgroups.Unified, Tasks: x.Cgroups.Tasks, PidNS: -1, Console: x.Process.Terminal,
	}
	if x.Namespaces&unix.CLONE_NEWPID != 0 {
		req.PidNS = x.Init
	}
	return e.run(ctx, req, false, x.Process)
}

// run launches req and sees it through to its execve.
func (e *Executor) run(ctx context.Context, req *launch.Request, handover bool, process *specs.Process) (*Process, error) {
	c, err := e.launcher.Launch(ctx, req)
	if err != nil {
		return nil, err
	}
	if handover {
		if err = c.Handover(ctx); err == nil {
			err = c.Release()
		}
		if err != nil {
			return nil, errors.Join(err, c.Abort())
		}
	}
	var console *os.File
	if req.Console {
		if console, err = c.Console(ctx); err != nil {
			return nil, errors.Join(err, c.Abort())
		}
	}
	if err := c.Wait(ctx); err != nil {
		if console != nil {
			_ = console.Close()
		}
		return nil, explain(err, process, c.Notes)
	}
	if req.Console && console == nil {
		return nil, errs.Internal.Errorf("the process started without its console")
	}
	return &Process{Pid: c.Pid, Pidfd: c.Pidfd, Console: console, Proc: c.Process(), Notes: c.Notes}, nil
}

// explain gives a failed step its class, and the failure of execve the words that people look for.
func explain(err error, process *specs.Process, notes []launch.Failure) error {
	var f *launch.Failure
	if !errors.As(err, &f) {
		return err
	}
	if f.Step.Nr == unix.SYS_SETNS && errors.Is(f.Errno, unix.ESRCH) {
		return errs.FailedPrecondition.Errorf("the container does not run: %w", err)
	}
	if f.Step.Nr != unix.SYS_EXECVE && f.Step.Nr != plan.NrFail {
		return err
	}
	name := process.Args[0]
	errno := f.Errno
	for _, n := range notes { // one of the candidates was there but could not be used
		if n.Step.Nr == unix.SYS_EXECVE {
			errno = n.Errno
		}
	}
	if f.Step.Nr == plan.NrFail && errors.Is(errno, unix.ENOENT) {
		return errs.InvalidArgument.Wrap(fmt.Errorf("exec: %q: executable file not found in $PATH", name))
	}
	return errs.InvalidArgument.Wrap(fmt.Errorf("exec: %q: %w", name, errno))
}
