package btrfs

import (
	"context"
	"errors"
	"os"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Mount implements volume.Attacher.
func (b *Backend) Mount(_ context.Context, v volume.Spec, _ bool) (*os.File, error) {
	d, f, err := b.open(v.ID)
	if err != nil {
		return nil, err
	}
	tree, err := mount.Clone(f, "")
	return tree, errors.Join(err, f.Close(), d.Close())
}

// Device implements volume.Attacher.
func (b *Backend) Device(_ context.Context, v volume.Spec, _ bool) (string, error) {
	return "", errs.InvalidArgument.Errorf("volume %s is a subvolume and no block device", v.ID)
}

// Holds implements volume.Attacher. Every subvolume has a device number of its own (stat(2)), and its root the inode
// 256.
func (b *Backend) Holds(_ context.Context, v volume.Spec, p mount.Point) (bool, error) {
	d, f, err := b.open(v.ID)
	if err != nil {
		return false, err
	}
	at, err := mount.At(f)
	return err == nil && at.Same(p), errors.Join(err, f.Close(), d.Close())
}

// Release implements volume.Attacher: there is nothing to detach, but somebody may still have it mounted.
func (b *Backend) Release(_ context.Context, v volume.Spec) error {
	d, err := b.pool.Dir() // of a pool that is not there nobody knows
	if err != nil {
		return err
	}
	point, err := mount.Within("btrfs", pool.Volumes, v.ID)
	if err == nil && point != "" {
		err = errs.FailedPrecondition.Errorf("volume %s is still mounted at %s, here or in another mount namespace: end what uses it", v.ID, point)
	}
	return errors.Join(err, d.Close())
}

// Grow implements volume.Attacher: a limit is all there is, and Resize has set it.
func (b *Backend) Grow(context.Context, volume.Spec, *os.File) error { return nil }

// Usage implements volume.Attacher. What snapshots hold is charged to the volume too, and is not its user's.
func (b *Backend) Usage(_ context.Context, v volume.Spec, _ *os.File) (volume.Usage, error) {
	n, err := b.charged(v.Number)
	if err != nil {
		return volume.Usage{}, err
	}
	used := max(0, min(n, v.Capacity))
	return volume.Usage{Total: v.Capacity, Used: used, Available: max(0, v.Capacity+v.Held-n)}, nil
}
