package dir

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/tree"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Usage implements volume.Attacher.
func (b *Backend) Usage(_ context.Context, v volume.Spec, root *os.File) (volume.Usage, error) {
	d, f, err := b.Open(v.ID)
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
	if there, err := d.Exists(pooldir.Path(pool.Snapshots, s.ID)); there || err != nil {
		return err
	}
	if err := d.Discard(pooldir.Path(pool.Building, s.ID)); err != nil { // a killed attempt's
		return err
	}
	src, err := d.Sub(pooldir.Path(pool.Volumes, s.Volume.ID))
	if err != nil {
		return errs.NotFound.Errorf("the directory of volume %s: %w", s.Volume.ID, err)
	}
	defer src.Close() //nolint:errcheck // read only
	to, err := b.directory(d, pooldir.Path(pool.Building, s.ID))
	if err != nil {
		return err
	}
	if err := errors.Join(tree.Copy(ctx, src, to), unix.Syncfs(int(to.Fd())), to.Close()); err != nil {
		return err
	}
	return d.Rename(pooldir.Path(pool.Building, s.ID), pooldir.Path(pool.Snapshots, s.ID), true)
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
	return errors.Join(d.Remove(pooldir.Path(pool.Snapshots, id)), d.Discard(pooldir.Path(pool.Building, id)))
}
