// Package csibench measures berth-csi: claims bound per second against a driver that does nothing behind the same loops
// and against external-provisioner, the driver's own share, the disk through a volume and beside it, and memory
// against the sidecars that it replaces.
package csibench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/harness"
)

const (
	driver = "csi.berth.dev"
	noop   = "noop.berth.dev"
)

type bench struct {
	lab     *harness.Lab
	cluster *harness.Cluster
}

func (b *bench) socket() string  { return b.lab.Run + "/csi.sock" }
func (b *bench) kubelet() string { return b.lab.Dir + "/kubelet" }

// mount is where a pool's file system is: btrfs in a loop file of its own; the loop pool is on the lab's directory.
func (b *bench) mount(pool string) string { return filepath.Join(b.lab.Dir, "pool-"+pool) }

// Run measures everything and writes out/bench/csi.json.
func Run(ctx context.Context, lab *harness.Lab, out string) (err error) {
	b := &bench{lab: lab}
	if err := harness.Stop(ctx, lab); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.clear()) }()
	if err := b.pools(); err != nil {
		return err
	}
	if b.cluster, err = lab.StartCluster(ctx, lab.Node()); err != nil {
		return err
	}
	if err := prepare(ctx, b.cluster.Client, lab.Node()); err != nil {
		return err
	}
	r := &report.Report{}
	for _, part := range []func(context.Context, *report.Report) error{b.bursts, b.sidecars, b.share, b.disks} {
		if err := part(ctx, r); err != nil {
			return err
		}
	}
	r.Print(os.Stdout)
	return r.WriteJSON(filepath.Join(out, "bench", "csi.json"))
}

func (b *bench) pools() error {
	if err := errors.Join(os.MkdirAll(b.mount("btrfs"), 0o700), os.MkdirAll(b.mount("loop"), 0o700), os.MkdirAll(b.kubelet(), 0o700), os.MkdirAll(b.lab.Run, 0o711)); err != nil {
		return err
	}
	image := b.lab.Dir + "/btrfs.img"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(24<<30), f.Close()); err != nil {
		return err
	}
	for _, args := range [][]string{{"mkfs.btrfs", "-q", image}, {"mount", "-o", "loop", image, b.mount("btrfs")}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	return nil
}

func (b *bench) clear() error {
	out, err := exec.Command("umount", b.mount("btrfs")).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("umount: %w: %s", err, out)
	}
	var stop error
	if b.cluster != nil {
		stop = b.cluster.Stop()
	}
	return errors.Join(err, stop, b.lab.Clear())
}

// daemon starts berth-csi, with its loops or without.
func (b *bench) daemon(ctx context.Context, loops bool) (*harness.Process, error) {
	admin, err := b.cluster.Kubeconfig("bench", b.cluster.Token("admin"))
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("root=%q\nstate=%q\nnode=%q\nsocket=%q\nregistration_dir=''\nkubelet_dir=%q\ndebug_socket=''\n[cluster]\nenabled=%v\nkubeconfig=%q\n"+
		"[pools.btrfs]\nbackend='btrfs'\npath=%q\n[pools.loop]\nbackend='loop'\npath=%q\nsize='20Gi'\n",
		b.lab.Dir+"/csi", b.lab.Run+"/csi", b.lab.Node(), b.socket(), b.kubelet(), loops, admin, b.mount("btrfs")+"/p", b.mount("loop")+"/p")
	conf := b.lab.Run + "/csi.toml"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := harness.Start(b.lab.Logs(), "berth-csi", nil, filepath.Join(b.lab.Bin, "berth-csi"), "--config", conf)
	if err != nil {
		return nil, err
	}
	return p, harness.Until(ctx, 20*time.Millisecond, p, func() error { _, err := os.Stat(b.socket()); return err })
}

// claims is how many are bound in one burst; memory is looked at after it.
const claims = 100

func (b *bench) bursts(ctx context.Context, r *report.Report) error {
	p, err := b.daemon(ctx, true)
	if err != nil {
		return err
	}
	admin, err := b.cluster.Kubeconfig("bench", b.cluster.Token("admin"))
	if err != nil {
		return err
	}
	q, err := harness.Start(b.lab.Logs(), "noop", nil, filepath.Join(b.lab.Bin, "noop"), "--kubeconfig", admin, "--node", b.lab.Node(), "--name", noop)
	if err != nil {
		return errors.Join(err, p.Stop())
	}
	all := map[string]*report.Series{"btrfs": {}, "loop": {}, "noop": {}}
	for round := range 4 {
		for _, class := range []string{"noop", "btrfs", "loop"} {
			rate, err := burst(ctx, b.cluster.Client, b.lab.Node(), class, claims)
			if err != nil {
				return errors.Join(err, p.Stop(), q.Stop())
			}
			if round > 0 { // the first is for caches
				*all[class] = append(*all[class], rate)
			}
		}
	}
	r.Add("volumes_per_s_btrfs_vs_noop", "1/s", all["btrfs"].P50(), all["noop"].P50())
	r.Add("volumes_per_s_loop_ext4_vs_noop", "1/s", all["loop"].P50(), all["noop"].P50())
	return errors.Join(p.Stop(), q.Stop())
}

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
	theirs, err := burst(ctx, b.cluster.Client, b.lab.Node(), "btrfs", 40)
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
	ours, err := burst(ctx, b.cluster.Client, b.lab.Node(), "btrfs", claims)
	if err != nil {
		return err
	}
	our, err := rig.PSS([]int{p.Pid()})
	r.Add("volumes_per_s_vs_external_provisioner", "1/s", ours, theirs)
	r.Add("pss_vs_driver_and_two_sidecars", "MiB", float64(our)/(1<<20), float64(their)/(1<<20))
	return errors.Join(err, p.Stop())
}

// share is the driver's own part of a claim: the CreateVolume call. The peer is the pool's limit in the terms,
// so that a ratio of at most 1 is what is wanted.
func (b *bench) share(ctx context.Context, r *report.Report) error {
	p, err := b.daemon(ctx, false)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name, pool, fs string
		limit          float64
	}{{"driver_ms_btrfs", "btrfs", "", 5}, {"driver_ms_loop_ext4", "loop", "ext4", 40}} {
		s, err := creates(ctx, b.socket(), c.pool, c.fs)
		if err != nil {
			return errors.Join(err, p.Stop())
		}
		r.Add(c.name+"_p50", "ms", s.P50(), c.limit)
		r.Add(c.name+"_p95", "ms", s.P95(), c.limit)
	}
	return p.Stop()
}

func (b *bench) disks(ctx context.Context, r *report.Report) error {
	p, err := b.daemon(ctx, false)
	if err != nil {
		return err
	}
	return errors.Join(b.disk(ctx, r, "btrfs", ""), b.disk(ctx, r, "loop", "ext4"), p.Stop())
}
