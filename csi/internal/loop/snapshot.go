package loop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	afterFreeze   = failpoint.New("csi.loop.after_freeze")
	afterReflink  = failpoint.New("csi.loop.after_reflink")
	afterSnapshot = failpoint.New("csi.loop.after_snapshot")
)

// copyFrom gives f the content of a source: by reflink, or by copying what is not a hole.
func (b *Backend) copyFrom(ctx context.Context, d *pool.Dir, f *os.File, s volume.Source) error {
	name := file(pool.Snapshots, s.Snapshot)
	if s.Volume != "" {
		name = file(pool.Volumes, s.Volume)
	}
	src, err := d.Beneath(name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return errs.NotFound.Errorf("the source's file %s: %w", name, err)
	}
	defer src.Close() //nolint:errcheck // read only
	return b.duplicate(ctx, f, src)
}

func (b *Backend) duplicate(ctx context.Context, to, from *os.File) error {
	if b.reflink.Load() {
		if err := b.sameCOW(to, from); err != nil {
			return err
		}
		return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	}
	return copyData(ctx, to, from)
}

// sameCOW: btrfs clones only between files that agree on copying on write.
func (b *Backend) sameCOW(to, from *os.File) error {
	flags, err := unix.IoctlGetInt(int(from.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&noCOWFlag == 0 {
		return nil //nolint:nilerr // a file system without flags has no such difference
	}
	return b.noCOW(to)
}

// copyData copies the parts of a file that hold data and gives the copy the same size.
func copyData(ctx context.Context, to, from *os.File) error {
	fi, err := from.Stat()
	if err != nil {
		return err
	}
	if err := retryInterrupted(func() error { return unix.Fallocate(int(to.Fd()), 0, 0, fi.Size()) }); err != nil {
		return err
	}
	const slice = 16 << 20
	for at := int64(0); at < fi.Size(); {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return unchanged(from, fi.Size())
		}
		if err != nil {
			return fmt.Errorf("seek: %w", err)
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek: %w", err)
		}
		for at = start; at < end; {
			n, err := io.Copy(io.NewOffsetWriter(to, at), io.NewSectionReader(from, at, min(slice, end-at)))
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			if n == 0 {
				return errs.Internal.Errorf("the source ends at %d of %d bytes while it is copied", at, fi.Size())
			}
			at += n
		}
	}
	return unchanged(from, fi.Size())
}

// unchanged says that a source is as long as it was: one that is erased while it is copied ends in a hole, too.
func unchanged(from *os.File, size int64) error {
	fi, err := from.Stat()
	if err == nil && fi.Size() != size {
		err = errs.Internal.Errorf("the source had %d bytes and has %d while it is copied", size, fi.Size())
	}
	return err
}

// Snapshot implements volume.Snapshots: every file system in use is frozen (FIFREEZE), every file is cloned, every
// file system thawed. What is not in use is at rest anyway. A raw block device in use is cloned at one moment, as
// FICLONE locks the file, but two of them are not, so more than one is refused.
func (b *Backend) Snapshot(ctx context.Context, all []volume.SnapshotSpec) (err error) {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	todo, err := b.missing(d, all)
	if err != nil || len(todo) == 0 {
		return err
	}
	used, block := 0, 0
	for _, s := range todo {
		if s.InUse {
			used++
			if s.Volume.Block {
				block++
			}
		}
	}
	if used > 0 && !b.reflink.Load() {
		return errs.FailedPrecondition.Errorf("the pool at %s has no reflinks, so a volume in use cannot be snapshotted: end the pods that use it, or use a pool on xfs or btrfs", b.pool.Path())
	}
	if block > 0 && used > 1 {
		return errs.FailedPrecondition.Errorf("raw block volumes in use cannot be frozen, so a snapshot of %d volumes would not be of one moment: end the pods that use them", used)
	}
	thaw, err := blockfs.Freeze(todo)
	if err == nil {
		err = afterFreeze.Hit()
	}
	for _, s := range todo {
		if err == nil {
			err = b.snapshot(ctx, d, s)
		}
	}
	if err = errors.Join(err, thaw()); err == nil {
		err = b.publish(d, todo)
	}
	if err != nil {
		for _, s := range todo {
			err = errors.Join(err, d.Discard(file(pool.Building, s.ID)), d.Discard(file(pool.Snapshots, s.ID)))
		}
	}
	return pool.Full(err)
}

// missing are those that are not there yet. Of several, either all are there or none counts: a killed Snapshot may
// have renamed some, and those that are left now would be of another moment.
func (b *Backend) missing(d *pool.Dir, all []volume.SnapshotSpec) ([]volume.SnapshotSpec, error) {
	complete := true
	for _, s := range all {
		there, err := d.Exists(file(pool.Snapshots, s.ID))
		if err != nil {
			return nil, err
		}
		complete = complete && there
	}
	if complete {
		return nil, nil
	}
	for _, s := range all {
		if err := errors.Join(d.Discard(file(pool.Snapshots, s.ID)), d.Discard(file(pool.Building, s.ID))); err != nil {
			return nil, pool.Full(err)
		}
	}
	return all, nil
}

func (b *Backend) snapshot(ctx context.Context, d *pool.Dir, s volume.SnapshotSpec) error {
	src, err := d.Beneath(file(pool.Volumes, s.Volume.ID), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return errs.NotFound.Errorf("the file of volume %s: %w", s.Volume.ID, err)
	}
	defer src.Close() //nolint:errcheck // read only
	f, err := d.Beneath(file(pool.Building, s.ID), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(b.duplicate(ctx, f, src), afterReflink.Hit(), f.Close())
}

// publish makes complete snapshots durable and visible, after the thaw: a sync may take long.
func (b *Backend) publish(d *pool.Dir, all []volume.SnapshotSpec) error {
	for _, s := range all {
		f, err := d.Beneath(file(pool.Building, s.ID), unix.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	for _, s := range all {
		if err := d.Rename(file(pool.Building, s.ID), file(pool.Snapshots, s.ID), true); err != nil {
			return err
		}
	}
	return afterSnapshot.Hit()
}

// RemoveSnapshot implements volume.Snapshots.
func (b *Backend) RemoveSnapshot(_ context.Context, id string) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return pool.Full(errors.Join(d.Remove(file(pool.Snapshots, id)), d.Discard(file(pool.Building, id))))
}

// Thaw implements volume.Snapshots.
func (b *Backend) Thaw(_ context.Context, mounted *os.File) error { return blockfs.Thaw(mounted) }
