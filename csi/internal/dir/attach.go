package dir

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/tree"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Mount implements volume.Attacher.
func (b *Backend) Mount(_ context.Context, v volume.Spec, _ bool) (*os.File, error) {
	d, f, err := b.open(v.ID)
	if err != nil {
		return nil, err
	}
	t, err := mount.Clone(f, "")
	return t, errors.Join(err, f.Close(), d.Close())
}

// Device implements volume.Attacher.
func (b *Backend) Device(_ context.Context, v volume.Spec, _ bool) (string, error) {
	return "", errs.InvalidArgument.Errorf("volume %s is a directory and no block device", v.ID)
}

// Holds implements volume.Attacher.
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
	point, err := mount.Within(b.fstype, pool.Volumes, v.ID)
	if err == nil && point != "" {
		err = errs.FailedPrecondition.Errorf("volume %s is still mounted at %s, here or in another mount namespace: end what uses it", v.ID, point)
	}
	return errors.Join(err, d.Close())
}

// Grow implements volume.Attacher: a limit is all there is, and Resize has set it.
func (b *Backend) Grow(context.Context, volume.Spec, *os.File) error { return nil }

// Usage implements volume.Attacher.
func (b *Backend) Usage(_ context.Context, v volume.Spec, root *os.File) (volume.Usage, error) {
	d, f, err := b.open(v.ID)
	if err != nil {
		return volume.Usage{}, err
	}
	bytes, inodes, err := charged(f, project(v.Number))
	if err = errors.Join(err, f.Close(), d.Close()); err != nil {
		return volume.Usage{}, named(v, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return volume.Usage{}, named(v, err)
	}
	return volume.Usage{
		Total: v.Capacity, Used: bytes, Available: max(0, min(v.Capacity-bytes, int64(st.Bavail)*st.Bsize)), //nolint:gosec // sizes fit
		Inodes: inodes + int64(st.Ffree), InodesUsed: inodes, InodesAvail: int64(st.Ffree), //nolint:gosec // counts fit
	}, nil
}

// Snapshot implements volume.Snapshots: a copy of each, none of which may be in use.
func (b *Backend) Snapshot(ctx context.Context, all []volume.SnapshotSpec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	for _, s := range all {
		if s.InUse {
			return errs.FailedPrecondition.Errorf("volume %s is in use, and a copy of a directory in use would not be of one moment: end the pods that use it, or use a pool of the btrfs backend", s.Volume.ID)
		}
	}
	for _, s := range all {
		if err = b.snapshot(ctx, d, s); err != nil {
			break
		}
	}
	if err != nil {
		for _, s := range all {
			err = errors.Join(err, b.removeSnapshot(d, s.ID))
		}
	}
	return pool.Full(err)
}

func (b *Backend) snapshot(ctx context.Context, d *pool.Dir, s volume.SnapshotSpec) error {
	if there, err := d.Exists(path(pool.Snapshots, s.ID)); there || err != nil {
		return err
	}
	if err := d.Discard(path(pool.Building, s.ID)); err != nil { // a killed attempt's
		return err
	}
	src, err := d.Sub(path(pool.Volumes, s.Volume.ID))
	if err != nil {
		return errs.NotFound.Errorf("the directory of volume %s: %w", s.Volume.ID, err)
	}
	defer src.Close() //nolint:errcheck // read only
	to, err := b.directory(d, path(pool.Building, s.ID))
	if err != nil {
		return err
	}
	if err := errors.Join(tree.Copy(ctx, src, to), unix.Syncfs(int(to.Fd())), to.Close()); err != nil {
		return err
	}
	return d.Rename(path(pool.Building, s.ID), path(pool.Snapshots, s.ID), true)
}

// RemoveSnapshot implements volume.Snapshots.
func (b *Backend) RemoveSnapshot(_ context.Context, id string) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return pool.Full(b.removeSnapshot(d, id))
}

func (b *Backend) removeSnapshot(d *pool.Dir, id string) error {
	return errors.Join(d.Discard(path(pool.Snapshots, id)), d.Discard(path(pool.Building, id)))
}

// Changed implements volume.Snapshots: there is no device whose blocks could be counted.
func (b *Backend) Changed(context.Context, string, string) ([]volume.Range, error) {
	return nil, errs.FailedPrecondition.Errorf("the pool at %s is one of directories, which have no blocks: changed blocks are those of the loop backend", b.pool.Path())
}

// Thaw implements volume.Snapshots: nothing is ever frozen.
func (b *Backend) Thaw(context.Context, *os.File) error { return nil }
