package shims

import (
	"context"
	"os"
	"os/exec"
	"path"
	"syscall"
	"time"

	"github.com/berth-project/berth/cri/internal/systemd"
)

// adoptLimit bounds the moving of a shim into its unit.
const adoptLimit = 20 * time.Second

// group is the shim's own cgroup, outside every pod's.
func (s *shim) group() string {
	if s.pool.cfg.Scopes != nil {
		return s.pool.cfg.Group + "/" + s.scope().Unit
	}
	return s.pool.cfg.Group + "/shim-" + s.id
}

func (s *shim) scope() systemd.Scope {
	return systemd.Scope{Slice: path.Base(s.pool.cfg.Group), Unit: "berth-shim-" + s.id + ".scope", Description: "supervisor of pods " + s.id}
}

// born starts a shim's process in its own group, or has systemd move it into its own unit.
func (p *Pool) born(s *shim, cmd *exec.Cmd) error {
	if p.cfg.Scopes != nil {
		if err := cmd.Start(); err != nil {
			return err
		}
		return p.adoptShim(context.Background(), s, cmd.Process.Pid)
	}
	group := s.group()
	if err := p.cfg.Cgroups.Ensure(group); err != nil {
		return err
	}
	h, err := p.cfg.Cgroups.Open(group, group)
	if err != nil {
		return err
	}
	defer h.Close()
	if h.Unified != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(h.Unified.Fd())
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return p.cfg.Cgroups.Move(group, cmd.Process.Pid)
}

// adoptShim has systemd move a shim into its unit, if it is not there: a daemon may have died before it could ask.
func (p *Pool) adoptShim(ctx context.Context, s *shim, pid int) error {
	if p.cfg.Scopes == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, adoptLimit)
	defer cancel()
	return p.cfg.Scopes.Adopt(ctx, s.scope(), pid)
}

// command is a shim's, with its listening socket and its log.
func (p *Pool) command(s *shim, listener, log *os.File) *exec.Cmd {
	cmd := exec.Command(p.cfg.Binary, "--dir", s.dir) //nolint:gosec // from the configuration
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}
