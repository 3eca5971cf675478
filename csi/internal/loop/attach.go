package loop

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var afterAttach = failpoint.New("csi.loop.after_attach")

// Mount implements volume.Attacher. The device ends by itself with the last mount of it, in whatever namespace.
func (b *Backend) Mount(ctx context.Context, v volume.Spec, readOnly bool) (*os.File, error) {
	d, f, err := b.open(v.ID, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // the device has it
	if all, err := loopdev.Find(f); err != nil || len(all) > 0 {
		// One file under two devices is two caches of one file system: its end.
		return nil, errors.Join(errs.FailedPrecondition.Errorf("volume %s is still attached as %v: what uses it must end first", v.ID, all), err)
	}
	if err := blockfs.Prepare(ctx, v, f, readOnly); err != nil {
		return nil, err
	}
	dev, err := loopdev.Attach(f, loopdev.Options{ReadOnly: readOnly, AutoClear: true})
	if err != nil {
		return nil, err
	}
	defer dev.Close() //nolint:errcheck // the mount holds the device
	if err := errors.Join(afterAttach.Hit(), b.tuneNew(dev, v)); err != nil {
		return nil, err
	}
	return blockfs.Mount(v, dev.Name(), readOnly)
}

// Device implements volume.Attacher.
func (b *Backend) Device(_ context.Context, v volume.Spec, readOnly bool) (string, error) {
	d, f, err := b.open(v.ID, unix.O_RDWR)
	if err != nil {
		return "", err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // the device has it
	all, err := loopdev.Find(f)
	if err != nil {
		return "", err
	}
	for _, dev := range all { // a reader's device is another one: what it may not write, it cannot
		if ro, err := loopdev.ReadOnly(dev); err != nil || ro == readOnly {
			return dev, err
		}
	}
	dev, err := loopdev.Attach(f, loopdev.Options{ReadOnly: readOnly})
	if err != nil {
		return "", err
	}
	return dev.Name(), errors.Join(afterAttach.Hit(), b.tuneNew(dev, v), dev.Close())
}

// Holds implements volume.Attacher.
func (b *Backend) Holds(_ context.Context, v volume.Spec, p mount.Point) (bool, error) {
	d, f, err := b.open(v.ID, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // read only
	all, err := loopdev.Find(f)
	for _, dev := range all {
		var st unix.Stat_t
		if serr := unix.Stat(dev, &st); serr == nil && (st.Rdev == p.Dev || st.Rdev == p.Rdev) {
			return true, nil
		}
	}
	return false, err
}

// Release implements volume.Attacher.
func (b *Backend) Release(_ context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return b.release(d, v)
}

func (b *Backend) release(d *pool.Dir, v volume.Spec) error {
	f, err := d.Beneath(file(pool.Volumes, v.ID), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // never made, or removed already
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	return loopdev.Release(f)
}

// Grow implements volume.Attacher.
func (b *Backend) Grow(_ context.Context, v volume.Spec, root *os.File) error {
	d, f, err := b.open(v.ID, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // read only
	all, err := loopdev.Find(f)
	for _, dev := range all {
		err = errors.Join(err, loopdev.Grow(dev))
	}
	if err != nil || root == nil {
		return err
	}
	return blockfs.Grow(v, root, all...)
}

// Usage implements volume.Attacher.
func (b *Backend) Usage(_ context.Context, _ volume.Spec, root *os.File) (volume.Usage, error) {
	return blockfs.Usage(root)
}
