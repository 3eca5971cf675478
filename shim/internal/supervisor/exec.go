package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
	"github.com/berth-project/berth/shim/internal/reap"
)

// exec starts a further process in a running container.
func (s *Supervisor) exec(ctx context.Context, r *v1.Exec, fds []*os.File) (_ any, _ []*os.File, err error) {
	defer closeAll(fds)
	cg, streams, err := cut(r.Cgroups, fds)
	if err != nil {
		return nil, nil, err
	}
	process := &specs.Process{}
	if err := json.Unmarshal(r.Process, process); err != nil {
		return nil, nil, errs.InvalidArgument.Errorf("exec in %s: bad process: %w", r.Container, err)
	}
	x := &executor.Exec{ID: r.Container, Process: process, Cgroups: cg}
	if x.Filter, err = s.filter(r.Seccomp); err != nil {
		return nil, nil, err
	}
	if err := execStdio(x, r.Stdio, streams); err != nil {
		return nil, nil, err
	}
	c, init, err := s.reserveExec(r)
	if err != nil {
		return nil, nil, err
	}
	defer init.Close() //nolint:errcheck // a duplicate
	x.Init = int(init.Fd())
	p, err := c.work.Exec(ctx, x)
	if err != nil {
		s.releaseExec(c, r.ID)
		return nil, nil, fmt.Errorf("exec in container %s: %w", r.Container, err)
	}
	for _, n := range p.Notes {
		s.note(r.Container, n.Step.What, n.Errno)
	}
	reply := &execReply{ExecReply: v1.ExecReply{Pid: p.Pid, StartedAt: time.Now(), Handles: []string{v1.HandlePidfd}}, lent: lent{p.Pidfd}}
	if p.Console != nil {
		reply.Handles = append(reply.Handles, v1.HandleConsole)
		reply.lent = append(reply.lent, p.Console)
	}
	s.cfg.Reaper.OnExit(p.Proc, func(st reap.Status) { s.execEnded(c, r.ID, st) })
	return reply, reply.lent, nil
}

// execStdio assigns the descriptors that came to the streams that were named; the others are the null device.
func execStdio(x *executor.Exec, names []string, files []*os.File) error {
	if len(names) != len(files) || (x.Process.Terminal && len(names) > 0) {
		return errs.InvalidArgument.Errorf("%d stdio names and %d descriptors, terminal %v", len(names), len(files), x.Process.Terminal)
	}
	x.Stdio = executor.Stdio{-1, -1, -1}
	for i, name := range names {
		n := slices.Index([]string{v1.HandleStdin, v1.HandleStdout, v1.HandleStderr}, name)
		if n < 0 {
			return errs.InvalidArgument.Errorf("stdio %q", name)
		}
		x.Stdio[n] = int(files[i].Fd())
	}
	return nil
}

// reserveExec finds the container, takes the exec's id and pins the container's process.
func (s *Supervisor) reserveExec(r *v1.Exec) (*container, *os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[r.Container]
	switch {
	case c == nil || c.starting:
		return nil, nil, errs.NotFound.Errorf("container %s", r.Container)
	case c.ended || c.exit != nil:
		return nil, nil, errs.FailedPrecondition.Errorf("container %s does not run", r.Container)
	case r.ID == "" || c.execs[r.ID]:
		return nil, nil, errs.AlreadyExists.Errorf("exec %q in container %s", r.ID, r.Container)
	}
	init, err := dupFd(int(c.pidfd.Fd()))
	if err != nil {
		return nil, nil, err
	}
	c.execs[r.ID] = true
	return c, init, nil
}

func (s *Supervisor) releaseExec(c *container, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(c.execs, id)
}

func (s *Supervisor) execEnded(c *container, id string, st reap.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(c.execs, id)
	for p := range s.peers {
		p.Notify(v1.EventExited, v1.Exited{Container: c.cfg.ID, Exec: id, Exit: exitOf(st)})
	}
}
