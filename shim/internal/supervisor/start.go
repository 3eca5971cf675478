package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/crilog"
	"github.com/berth-project/berth/shim/internal/executor"
	"github.com/berth-project/berth/shim/internal/reap"
	"github.com/berth-project/berth/shim/internal/stdio"
)

// container is one container, from Start to Delete.
type container struct {
	cfg       v1.Container
	starting  bool
	pid       int
	pidfd     *os.File
	startedAt time.Time
	adopted   bool
	io        *stdio.IO
	work      Workload
	execs     map[string]bool // ids of execs that run
	exit      *v1.Exit        // set once recorded
	ended     bool            // the process is gone, but its end may not be recorded yet
	removing  bool
	over      chan struct{} // closed once exit is set
}

func newContainer(conf v1.Container) *container {
	return &container{cfg: conf, starting: true, execs: map[string]bool{}, over: make(chan struct{})}
}

func (c *container) state() v1.ContainerState {
	return v1.ContainerState{
		ID: c.cfg.ID, Pod: c.cfg.Pod, Pid: c.pid, StartedAt: c.startedAt, Exit: c.exit, Adopted: c.adopted,
	}
}

// handles duplicates the descriptors of Start's reply that are still there.
func (c *container) handles() ([]string, []*os.File) {
	names, files := c.io.Handles()
	if d, err := dupFd(int(c.pidfd.Fd())); err == nil {
		names, files = append([]string{v1.HandlePidfd}, names...), append([]*os.File{d}, files...)
	}
	return names, files
}

// start creates and starts a container.
func (s *Supervisor) start(ctx context.Context, r *v1.Start, fds []*os.File) (_ any, _ []*os.File, err error) {
	defer closeAll(fds)
	cg, _, err := cut(r.Cgroups, fds)
	if err != nil {
		return nil, nil, err
	}
	// 1. the id is taken before anything is made
	c := newContainer(r.Container)
	if err := s.reserve(c); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.release(c)
		}
	}()
	// 2. what the executor needs
	req, unpin, err := s.request(r, cg)
	if err != nil {
		return nil, nil, err
	}
	defer unpin()
	p, err := s.launch(ctx, c, req, r.OCI)
	if err != nil {
		return nil, nil, fmt.Errorf("start container %s: %w", r.ID, err)
	}
	// 3. the answer
	names, files := c.handles()
	reply := &startReply{StartReply: v1.StartReply{Pid: c.pid, StartedAt: c.startedAt, Handles: names}, lent: files}
	s.cfg.Reaper.OnExit(p.Proc, func(st reap.Status) { s.wg.Go(func() { s.exited(c, exitOf(st)) }) })
	return reply, files, nil
}

// launch makes a container's streams and log, starts its process, and begins to supervise it.
func (s *Supervisor) launch(ctx context.Context, c *container, req *executor.Start, oci *v1.OCIRuntime) (_ *executor.Process, err error) {
	pipes, err := makePipes(c.cfg.Terminal, c.cfg.Stdin)
	if err != nil {
		return nil, err
	}
	defer pipes.closeChild()
	defer func() {
		if err != nil {
			pipes.closeParent()
		}
	}()
	req.Stdio = pipes.stdio()
	if err := pipes.chown(req.Spec); err != nil {
		return nil, err
	}
	_ = os.Remove(journalPath(&c.cfg)) // of an earlier container of this id
	log, err := s.openLog(&c.cfg)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	p, work, err := s.cfg.Runtime.Start(ctx, req, oci)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	for _, n := range p.Notes {
		s.note(c.cfg.ID, n.Step.What, n.Errno)
	}
	c.pid, c.pidfd, c.work, c.startedAt = p.Pid, p.Pidfd, work, time.Now()
	if p.Console != nil {
		pipes.parent[v1.HandleConsole] = p.Console
	}
	if err := s.supervise(c, pipes.parent, log); err != nil {
		_ = unix.PidfdSendSignal(int(p.Pidfd.Fd()), unix.SIGKILL, nil, 0)
		select {
		case <-p.Proc.Done():
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("process %d is killed and does not die", p.Pid))
		}
		return nil, errors.Join(err, p.Pidfd.Close(), work.Remove(ctx))
	}
	return p, nil
}

// journalPath is where a container's output journal is: beside its exit record, where the next shim finds it.
func journalPath(c *v1.Container) string { return c.ExitFile + ".output" }

// openLog opens a container's log with its journal. Without room for a journal it goes on without one. On an error there is
// a log too, as crilog.Open has it.
func (s *Supervisor) openLog(c *v1.Container) (*crilog.Log, error) {
	if c.LogName == "" {
		return crilog.Open("", "", nil)
	}
	j, err := crilog.OpenJournal(journalPath(c))
	if err != nil {
		s.note(c.ID, "journal of output", err)
	}
	return crilog.Open(c.LogDir, c.LogName, j)
}

// reserve takes the container's id.
func (s *Supervisor) reserve(c *container) error {
	if c.cfg.ID == "" || c.cfg.ExitFile == "" {
		return errs.InvalidArgument.Errorf("a container needs an id and an exit file")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.cfg.ID] != nil {
		return errs.AlreadyExists.Errorf("container %s", c.cfg.ID)
	}
	s.containers[c.cfg.ID] = c
	return nil
}

// release gives up an id whose start failed.
func (s *Supervisor) release(c *container) {
	s.mu.Lock()
	delete(s.containers, c.cfg.ID)
	s.mu.Unlock()
	s.checkEmpty()
}

// supervise begins to copy the container's output and lists it. On an error files are closed.
func (s *Supervisor) supervise(c *container, files map[string]*os.File, log *crilog.Log) error {
	closed := func() { s.notify(v1.EventStdinClosed, v1.StdinClosed{Container: c.cfg.ID}) }
	io, err := s.mover.New(files, log, c.cfg.StdinOnce, closed)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.io, c.starting = io, false
	return nil
}

// request builds the executor's request. The descriptors in it stay open until unpin.
func (s *Supervisor) request(r *v1.Start, cg executor.Cgroups) (*executor.Start, func(), error) {
	spec := &specs.Spec{}
	if err := json.Unmarshal(r.Spec, spec); err != nil {
		return nil, nil, errs.InvalidArgument.Errorf("container %s: bad spec: %w", r.ID, err)
	}
	if spec.Process != nil && spec.Process.Terminal != r.Terminal {
		return nil, nil, errs.InvalidArgument.Errorf("container %s: terminal is %v in the request and %v in the spec", r.ID, r.Terminal, spec.Process.Terminal)
	}
	filter, err := s.filter(r.Seccomp)
	if err != nil {
		return nil, nil, err
	}
	req := &executor.Start{ID: r.ID, Spec: spec, Filter: filter, Rootfs: r.Rootfs, Cgroups: cg, PidOf: -1}
	pins, err := s.pin(req, r)
	if err != nil {
		return nil, nil, err
	}
	return req, func() { closeAll(pins) }, nil
}

// pin fills in the pod's namespaces and the pid namespace's owner, as duplicates: the pod may be removed meanwhile.
func (s *Supervisor) pin(req *executor.Start, r *v1.Start) (pins []*os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if err != nil {
			closeAll(pins)
		}
	}()
	if len(r.Join) > 0 {
		p := s.pods[r.Pod]
		if p == nil {
			return nil, errs.NotFound.Errorf("pod %s", r.Pod)
		}
		if req.Join, err = p.join(r.Join); err != nil {
			return nil, err
		}
		for kind, fd := range req.Join {
			f, err := dupFd(fd)
			if err != nil {
				return pins, err
			}
			pins = append(pins, f)
			req.Join[kind] = int(f.Fd())
		}
	}
	if r.PidOf != "" {
		c := s.containers[r.PidOf]
		if c == nil || c.starting {
			return pins, errs.NotFound.Errorf("container %s, whose pid namespace is to be entered", r.PidOf)
		}
		if c.cfg.Pod != r.Pod {
			return pins, errs.PermissionDenied.Errorf("container %s is of another pod", r.PidOf)
		}
		f, err := dupFd(int(c.pidfd.Fd()))
		if err != nil {
			return pins, err
		}
		pins = append(pins, f)
		req.PidOf = int(f.Fd())
	}
	return pins, nil
}

func dupFd(fd int) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) //nolint:gosec // a descriptor
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "dup"), nil //nolint:gosec // a descriptor
}
