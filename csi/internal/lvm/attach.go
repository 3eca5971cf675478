package lvm

import (
	"context"
	"errors"
	"os"

	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/devmapper"
	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/volume"
)

// activate makes the device of a complete volume.
func (b *Backend) activate(ctx context.Context, id string) (devmapper.Device, error) {
	if d, err := b.group.Device(complete(id)); err == nil {
		return d, nil
	}
	r, err := b.current(ctx)
	if err != nil {
		return devmapper.Device{}, err
	}
	if _, found, err := b.own(r, complete(id)); err != nil || !found {
		return devmapper.Device{}, errors.Join(err, b.lost(id))
	}
	d, err := b.group.Activate(ctx, complete(id))
	return d, errors.Join(err, afterActivate.Hit())
}

// Mount implements volume.Attacher.
func (b *Backend) Mount(ctx context.Context, v volume.Spec, readOnly bool) (*os.File, error) {
	if _, err := b.activate(ctx, v.ID); err != nil {
		return nil, err
	}
	d, err := b.group.Idle(ctx, complete(v.ID)) // repairing what somebody has mounted elsewhere would be its end
	if err != nil {
		return nil, err
	}
	return blockfs.MountAlone(ctx, v, d.Path(), readOnly)
}

// Device implements volume.Attacher. A reader gets a loop device that refuses writes in front of the volume.
func (b *Backend) Device(ctx context.Context, v volume.Spec, readOnly bool) (string, error) {
	d, err := b.activate(ctx, v.ID)
	if err != nil || !readOnly {
		return d.Path(), err
	}
	return loopdev.ReadOnlyFor(d.Path())
}

// readers are the loop devices in front of a volume.
func (b *Backend) readers(name string) []string {
	d, err := b.group.Device(name)
	if err != nil {
		return nil
	}
	all, err := loopdev.Over(d.Path())
	if err != nil {
		return nil
	}
	return all
}

// Holds implements volume.Attacher.
func (b *Backend) Holds(_ context.Context, v volume.Spec, p mount.Point) (bool, error) {
	d, err := b.group.Device(complete(v.ID))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return blockfs.Holds(d.Number, d.Path(), p)
}

// Release implements volume.Attacher.
func (b *Backend) Release(ctx context.Context, v volume.Spec) error {
	active, err := b.letGo(ctx, complete(v.ID))
	if err == nil && !active {
		_, err = b.fresh(ctx) // of a group that is not there nobody knows
	}
	return err
}

// letGo removes the device of a volume, and those in front of it, and says whether there was one.
func (b *Backend) letGo(ctx context.Context, name string) (active bool, err error) {
	d, err := b.group.Device(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, errors.Join(loopdev.ReleaseOver(d.Path()), b.group.Deactivate(ctx, name))
}

// Grow implements volume.Attacher. LVM has told the device already.
func (b *Backend) Grow(_ context.Context, v volume.Spec, root *os.File) error {
	if root == nil {
		return nil
	}
	d, err := b.group.Device(complete(v.ID))
	if err != nil {
		return err
	}
	return blockfs.Grow(v, root, d.Path())
}

// Usage implements volume.Attacher.
func (b *Backend) Usage(_ context.Context, _ volume.Spec, root *os.File) (volume.Usage, error) {
	return blockfs.Usage(root)
}
