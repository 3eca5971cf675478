package csibench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
)

// disks compares volumes with the file system that they are made of, without them: a directory of the pool's own file
// system. A volume in a file has a second yardstick, the kernel's floor: the same ext4 on a bare loop device whose file
// is in the same directory, attached by losetup with direct I/O and blocks of 4 KiB.
func (b *bench) disks(ctx context.Context, r *report.Report) error {
	p, err := b.daemon(ctx, false)
	if err != nil {
		return err
	}
	err = b.disk(ctx, r, "btrfs", "")
	if err == nil {
		err = b.disk(ctx, r, "loop", "ext4")
	}
	return errors.Join(err, p.Stop())
}

func (b *bench) disk(ctx context.Context, r *report.Report, pool, fs string) (err error) {
	staging, end, err := b.stage(ctx, pool, fs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	plain := filepath.Join(b.mount(pool), "plain")
	if err := os.Mkdir(plain, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(plain)) }()
	sides := []string{staging, plain} // directories that fio works in
	if pool == "loop" {
		bare, unmount, err := b.bareLoop(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unmount()) }()
		sides = append(sides, bare)
	}
	for _, dir := range sides {
		if err := fill(dir); err != nil {
			return err
		}
	}
	for _, j := range jobs() {
		all, err := j.turns(ctx, sides)
		if err != nil {
			return err
		}
		name := "fio_" + j.name + "_" + pool
		r.AddPaired(name, "MiB/s", all[0], all[1])
		show(name, report.Ratios(all[0], all[1]))
		if len(sides) > 2 {
			r.AddPaired(name+"_vs_loop_device", "MiB/s", all[0], all[2])
			show(name+"_vs_loop_device", report.Ratios(all[0], all[2]))
		}
	}
	return nil
}

// turns lets the sides take turns, in an order that goes on by one each time and is turned round every second time, so
// that none always comes after the same other one. It returns those turns that the rest of the machine disturbed least.
func (j job) turns(ctx context.Context, sides []string) ([]report.Series, error) {
	type turn struct {
		waited uint64
		rates  []float64
	}
	var all []turn
	for pair := range pairs + 1 {
		order := make([]int, len(sides))
		for i := range order {
			order[i] = (i + pair/2) % len(sides)
		}
		if pair%2 == 1 {
			slices.Reverse(order)
		}
		t := turn{rates: make([]float64, len(sides))}
		for _, i := range order {
			for _, dir := range sides {
				if err := settle(dir); err != nil {
					return nil, err
				}
			}
			before, err := rig.Waited()
			if err != nil {
				return nil, err
			}
			if t.rates[i], err = j.run(ctx, sides[i]); err != nil {
				return nil, err
			}
			after, err := rig.Waited()
			if err != nil {
				return nil, err
			}
			t.waited += after - before
		}
		if pair > 0 {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b turn) int { return cmp.Compare(a.waited, b.waited) })
	series := make([]report.Series, len(sides))
	for _, t := range all[:counted] {
		for i, rate := range t.rates {
			series[i] = append(series[i], rate)
		}
	}
	return series, nil
}

// show says how far the pairs lie apart.
func show(name string, ratios report.Series) {
	fmt.Printf("  %-44s ratios %.2f  (quartiles %.2f to %.2f of %d pairs)\n", name, ratios.P50(), ratios.Quantile(0.25), ratios.Quantile(0.75), len(ratios))
}

// stage makes a volume of 1 GiB and returns where it is staged.
func (b *bench) stage(ctx context.Context, pool, fs string) (staging string, end func() error, err error) {
	conn, err := dial(b.socket())
	if err != nil {
		return "", nil, err
	}
	c, n := csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	v, err := c.CreateVolume(ctx, request("fio-"+pool, pool, fs, 1<<30))
	if err != nil {
		return "", nil, errors.Join(err, conn.Close())
	}
	id := v.GetVolume().GetVolumeId()
	staging = filepath.Join(b.kubelet(), "fio-"+pool)
	if err := os.Mkdir(staging, 0o700); err != nil {
		return "", nil, errors.Join(err, conn.Close())
	}
	end = func() error {
		_, uerr := n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
		_, derr := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		return errors.Join(uerr, derr, conn.Close(), os.Remove(staging))
	}
	_, err = n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: request("", pool, fs, 0).GetVolumeCapabilities()[0]})
	if err != nil {
		return "", nil, errors.Join(err, end())
	}
	return staging, end, nil
}

// bareLoop mounts an ext4 on a loop device as an administrator would by hand, if he knew all that makes it fast.
func (b *bench) bareLoop(ctx context.Context) (dir string, unmount func() error, err error) {
	image, dir := filepath.Join(b.mount("loop"), "bare.img"), filepath.Join(b.lab.Dir, "bare")
	command := func(name string, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return string(out), err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	for _, args := range [][]string{{"fallocate", "-l", "1G", image}, {"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,assume_storage_prezeroed=1", image}} {
		if _, err := command(args[0], args[1:]...); err != nil {
			return "", nil, err
		}
	}
	dev, err := command("losetup", "-f", "--show", "--direct-io=on", "--sector-size=4096", image)
	if err != nil {
		return "", nil, err
	}
	dev = strings.TrimSpace(dev)
	if _, err := command("mount", "-t", "ext4", dev, dir); err != nil {
		_, derr := command("losetup", "-d", dev)
		return "", nil, errors.Join(err, derr)
	}
	unmount = func() error {
		_, err := command("umount", dir)
		return errors.Join(err, os.Remove(image), os.Remove(dir))
	}
	if _, err := command("losetup", "-d", dev); err != nil { // it ends with the mount
		return "", nil, errors.Join(err, unmount())
	}
	return dir, unmount, nil
}
