package btrfs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Snapshot implements volume.Snapshots. One snapshot is of one moment, with all that was written before it, synced or
// not; several are only if no more than one of the volumes is in use, and are refused otherwise.
func (b *Backend) Snapshot(_ context.Context, all []volume.SnapshotSpec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	complete, used := true, 0
	for _, s := range all {
		there, err := d.Exists(pooldir.Path(pool.Snapshots, s.ID))
		if err != nil {
			return err
		}
		complete = complete && there
		if s.InUse {
			used++
		}
	}
	if complete {
		return nil
	}
	if used > 1 {
		return errs.FailedPrecondition.Errorf("btrfs snapshots %d volumes in use one after the other, which would not be of one moment: end the pods that use them, or use a loop pool on xfs", used)
	}
	for _, s := range all {
		if err = b.removeSnapshot(d, s.ID); err == nil { // of an attempt that was killed in the middle
			err = b.snapshot(d, s)
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		err = afterSnapshot.Hit()
	}
	if err != nil {
		for _, s := range all {
			err = errors.Join(err, b.removeSnapshot(d, s.ID))
		}
	}
	return pool.Full(err)
}

func (b *Backend) snapshot(d *pool.Dir, s volume.SnapshotSpec) error {
	src, err := d.Sub(pooldir.Path(pool.Volumes, s.Volume.ID))
	if err != nil {
		return errs.NotFound.Errorf("the subvolume of volume %s: %w", s.Volume.ID, err)
	}
	defer src.Close() //nolint:errcheck // read only
	dir, err := d.Sub(pool.Snapshots)
	if err != nil {
		return err
	}
	return errors.Join(makeSubvolume(dir, s.ID, src, 0, true), dir.Close())
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

// removeSnapshot destroys at once: it takes no time, the kernel frees the extents in the background.
func (b *Backend) removeSnapshot(d *pool.Dir, id string) error {
	f, err := d.Sub(pooldir.Path(pool.Snapshots, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	n, err := subvolumeID(f)
	if err != nil {
		return err
	}
	err = destroy(f, n)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
