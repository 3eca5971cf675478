package agent

import (
	"context"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/netdconf"
	"github.com/berth-project/berth/cni/internal/offload"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// softChecksums are the devices whose checksums are computed in software: all, none, or those that were found out.
func (a *Agent) softChecksums(names overlay.Names) (devs []string) {
	switch a.conf.Checksums {
	case netdconf.Software:
		return []string{names.V4, names.V6}
	case netdconf.Auto:
		for _, v := range a.verdicts() {
			devs = append(devs, v.Dev)
		}
	}
	return devs
}

func (a *Agent) verdicts() []offload.Verdict {
	if a.test == nil {
		return nil
	}
	return a.test.Verdicts()
}

// selfTest says whom to ask whether checksums arrive: every neighbour in a tunnel. That it cannot be asked is no reason
// not to serve pods.
func (a *Agent) selfTest(ctx context.Context, plan *overlay.Plan, tunnel fabric.Tunnel, indexes map[string]int32) {
	if a.conf.Checksums != netdconf.Auto {
		return
	}
	targets := make([]offload.Target, len(plan.Neighs))
	for i, n := range plan.Neighs {
		targets[i] = offload.Target{Dev: n.Dev, Index: indexes[n.Dev], Peer: n.Addr, Port: tunnel.WithDefaults().TestPort}
	}
	if err := a.test.Set(ctx, targets); err != nil {
		a.log.Warn("the self-test of checksums", "error", err)
	}
}
