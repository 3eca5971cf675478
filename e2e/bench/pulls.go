package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/bench/fresh"
	"github.com/berth-project/berth/e2e/bench/pods"
	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/images"
)

// pulls times pull and unpack, each round with new daemons on new file systems.
func (b *run) pulls(ctx context.Context) error {
	took := map[string]map[string]report.Series{}
	for _, image := range []struct{ row, ref string }{{"pull_128MiB", images.BenchBig}, {"pull_11500_files", images.BenchSmall}} {
		took[image.row] = map[string]report.Series{}
		for round := range b.Rounds {
			for k := range 2 {
				name := []string{berth, containerd}[(k+round)%2]
				b.quiet(ctx)
				ms, err := b.pull(ctx, name, image.ref)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				took[image.row][name] = append(took[image.row][name], ms)
			}
		}
		b.report.Add(image.row+"_p50", "ms", took[image.row][berth].P50(), took[image.row][containerd].P50())
	}
	return nil
}

func (b *run) pull(ctx context.Context, name, ref string) (ms float64, err error) {
	dir := rig.Dir("pull" + name)
	fs, err := fresh.Mount(ctx, filepath.Join(rig.Dir(""), "pull.ext4"), dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, fs.Unmount(), os.RemoveAll(dir)) }()
	make := func() (*rig.Side, error) { return b.stage.env.Berth("pull"+name, "10.84.0.0/16", false) }
	if name == containerd {
		make = func() (*rig.Side, error) { return b.stage.env.Containerd("pull"+name, "10.85.0.0/16") }
	}
	side, err := make()
	if err != nil {
		return 0, err
	}
	if err := side.Start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, side.Stop()) }()
	// the connection, the daemon's lazy parts and its first file are no part of a pull
	if _, err := pods.Pull(ctx, side.Client, images.BenchPod); err != nil {
		return 0, err
	}
	d, err := pods.Pull(ctx, side.Client, ref)
	if err != nil {
		return 0, err
	}
	resp, err := side.Client.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err == nil && resp.GetImage().GetId() == "" {
		err = fmt.Errorf("%s is not there after its pull", ref)
	}
	return d.Seconds() * 1000, err
}
