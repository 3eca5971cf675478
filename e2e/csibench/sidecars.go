package csibench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/harness"
)

// sidecars measures external-provisioner, -resizer and -snapshotter in front of berth-csi without its loops, and then
// berth-csi with them, for the same claims.
func (b *bench) sidecars(ctx context.Context, r *report.Report) error {
	if _, err := os.Stat(filepath.Join(b.lab.Tool, "csi-provisioner")); err != nil {
		return fmt.Errorf("the sidecars are not built: run `make tools`: %w", err)
	}
	p, err := b.daemon(ctx, false)
	if err != nil {
		return err
	}
	admin, err := b.cluster.Kubeconfig("bench", b.cluster.Token("admin"))
	if err != nil {
		return err
	}
	var pids []int
	stop := []func() error{p.Stop}
	for _, s := range []string{"csi-provisioner", "csi-resizer"} {
		args := []string{filepath.Join(b.lab.Tool, s), "--csi-address", b.socket(), "--kubeconfig", admin}
		q, err := harness.Start(b.lab.Logs(), s, nil, args...)
		if err != nil {
			return err
		}
		pids, stop = append(pids, q.Pid()), append(stop, q.Stop)
	}
	theirs, err := burst(ctx, b.cluster.Client, b.lab.Node(), "btrfs", 40, nothing)
	if err != nil {
		return err
	}
	their, err := rig.PSS(append(pids, p.Pid()))
	for _, s := range stop {
		err = errors.Join(err, s())
	}
	if err != nil {
		return err
	}
	if p, err = b.daemon(ctx, true); err != nil {
		return err
	}
	ours, err := burst(ctx, b.cluster.Client, b.lab.Node(), "btrfs", claims, nothing)
	if err != nil {
		return err
	}
	our, err := rig.PSS([]int{p.Pid()})
	r.Add("volumes_per_s_vs_external_provisioner", "1/s", ours, theirs)
	r.Add("pss_vs_driver_and_two_sidecars", "MiB", float64(our)/(1<<20), float64(their)/(1<<20))
	return errors.Join(err, p.Stop())
}

func nothing() error { return nil }
