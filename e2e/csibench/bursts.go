package csibench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/harness"
)

const (
	claims = 100 // bound in one burst
	rounds = 7   // of a burst of each class; the first is for caches and is not counted
)

// bursts compares how fast claims are bound with a driver that does nothing behind the same loops. The classes take
// turns, another one first in each round, and no burst begins before what the last one left to do is done: its volumes
// erased, the control plane and both drivers idle.
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
	all, classes := map[string]report.Series{}, []string{"noop", "btrfs", "loop"}
	for round := range rounds {
		for i := range classes {
			class := classes[(round+i)%len(classes)]
			if err := b.rest(ctx, p, q); err != nil {
				return err
			}
			rate, err := burst(ctx, b.cluster.Client, b.lab.Node(), class, claims)
			if err != nil {
				return err
			}
			if round > 0 {
				all[class] = append(all[class], rate)
			}
		}
	}
	for _, c := range []struct{ name, class string }{{"volumes_per_s_btrfs_vs_noop", "btrfs"}, {"volumes_per_s_loop_ext4_vs_noop", "loop"}} {
		r.AddPaired(c.name, "1/s", all[c.class], all["noop"])
		show(c.name, report.Ratios(all[c.class], all["noop"]))
	}
	fmt.Printf("  claims bound per second: no-op %.1f, btrfs %.1f, loop+ext4 %.1f\n", all["noop"], all["btrfs"], all["loop"])
	return nil
}
