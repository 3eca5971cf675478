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
	"slices"
	"time"

	"github.com/berth-project/berth/e2e/bench/report"
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

// Run measures the parts that are named (bursts, sidecars, share, disks; none: all) and writes out/bench/csi.json.
func Run(ctx context.Context, lab *harness.Lab, out string, names ...string) (err error) {
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
	for _, part := range []struct {
		name string
		run  func(context.Context, *report.Report) error
	}{{"bursts", b.bursts}, {"sidecars", b.sidecars}, {"share", b.share}, {"disks", b.disks}} {
		if len(names) > 0 && !slices.Contains(names, part.name) {
			continue
		}
		if err := part.run(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
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
