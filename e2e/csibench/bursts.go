package csibench

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/harness"
)

const (
	claims = 100 // bound in one burst
	rounds = 6   // of a burst of each class; the first is for caches and is not counted
)

// bursts compares how fast claims are bound with a driver that does nothing behind the same loops. The classes take
// turns, another one first in each round, and no burst begins before what the last one left to do is done: its volumes
// erased, the control plane and both drivers idle. Beside the rate stands what a claim costs in CPU time, of control plane
// and drivers together: where the CPUs are what limits, as here, it is the rate without what else the machine does.
func (b *bench) bursts(ctx context.Context, r *report.Report) (err error) {
	p, err := b.daemon(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	admin, err := b.cluster.Kubeconfig("bench", b.cluster.Token("admin"))
	if err != nil {
		return err
	}
	q, err := harness.Start(b.lab.Logs(), "noop", nil, filepath.Join(b.lab.Bin, "noop"), "--kubeconfig", admin, "--node", b.lab.Node(), "--name", noop)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Stop()) }()
	pids, err := b.processes(p, q)
	if err != nil {
		return err
	}
	all, cost, classes := map[string]report.Series{}, map[string]report.Series{}, []string{"noop", "btrfs", "loop"}
	for round := range rounds {
		for i := range classes {
			class := classes[(round+i)%len(classes)]
			if err := b.rest(ctx, p, q); err != nil {
				return err
			}
			before, err := cpuTime(pids)
			if err != nil {
				return err
			}
			after := before
			rate, err := burst(ctx, b.cluster.Client, b.lab.Node(), class, claims, func() (err error) { after, err = cpuTime(pids); return err })
			if err != nil {
				return err
			}
			if round > 0 {
				all[class], cost[class] = append(all[class], rate), append(cost[class], (after-before).Seconds()*1000/claims)
			}
		}
	}
	for _, c := range []struct{ name, class string }{{"btrfs", "btrfs"}, {"loop_ext4", "loop"}} {
		name := "volumes_per_s_" + c.name + "_vs_noop"
		r.AddPaired(name, "1/s", all[c.class], all["noop"])
		show(name, report.Ratios(all[c.class], all["noop"]))
		name = "volumes_per_cpu_s_" + c.name + "_vs_noop"
		r.AddPaired(name, "1/s", perSecond(cost[c.class]), perSecond(cost["noop"]))
		show(name, report.Ratios(cost["noop"], cost[c.class]))
	}
	return nil
}

// perSecond turns milliseconds a claim into claims a second.
func perSecond(ms report.Series) report.Series {
	all := make(report.Series, len(ms))
	for i := range ms {
		all[i] = 1000 / ms[i]
	}
	return all
}
