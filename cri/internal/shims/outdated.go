package shims

import (
	"context"
	"fmt"
	"os"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// outdated says whether a supervisor runs another file than the one new supervisors are started from: an upgrade puts new
// binaries in the place of the old ones, which live on as the programs of those who run them. Files are compared, not
// versions, so that two builds of one version are told apart too. Where the process cannot be looked at it is not outdated:
// the question is one of good order, not of safety.
func (p *Pool) outdated(pid int) bool {
	runs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	now, err := os.Stat(p.cfg.Binary)
	return err == nil && !os.SameFile(runs, now)
}

// retire drains a supervisor of before an upgrade: it takes no new pods and ends with its last one. It says whether it
// drains. One that could not be told is given no pods either, and is told again by the next daemon.
func (p *Pool) retire(ctx context.Context, s *shim, hello *v1.HelloReply) bool {
	if hello.Draining || !p.outdated(hello.Pid) {
		return hello.Draining
	}
	p.log.Info("shim of another build drains", "shim", s.id, "build", hello.Build, "pods", len(hello.Pods))
	p.drain(ctx, s)
	return true
}

func (p *Pool) drain(ctx context.Context, s *shim) {
	if _, err := s.call(ctx, v1.MethodDrain, struct{}{}, nil, nil); err != nil {
		p.log.Error("shim could not be told to drain; it is given no new pods", "shim", s.id, "error", err)
	}
}

// thin ends the supervisors that have nothing, but for the last one that takes pods: daemons that died while they started one
// have left them, and pods would be spread over all.
func (p *Pool) thin(ctx context.Context, idle []*shim) {
	for _, s := range idle {
		p.mu.Lock()
		others := 0
		for _, o := range p.shims {
			if o != s && !o.draining {
				others++
			}
		}
		ends := others > 0 && !s.draining
		s.draining = s.draining || ends
		p.mu.Unlock()
		if ends {
			p.log.Info("shim that has nothing ends, there is another", "shim", s.id)
			p.drain(ctx, s)
		}
	}
}
