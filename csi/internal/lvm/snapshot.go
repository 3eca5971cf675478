package lvm

import (
	"context"
	"errors"
	"os"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/volgroup"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Snapshot implements volume.Snapshots. Of a thin volume it is LVM's own, for which LVM freezes what is mounted; of
// several that are mounted all are frozen first, so that they are of one moment. Of a thick volume it is a copy, of one
// at rest: LVM's other kind of snapshot ends when its own space does, and slows every write of its origin down.
func (b *Backend) Snapshot(ctx context.Context, all []volume.SnapshotSpec) (err error) {
	r, err := b.current(ctx)
	if err != nil {
		return err
	}
	if done, err := b.begun(ctx, r, all); done || err != nil {
		return err
	}
	if err := errors.Join(b.snapshottable(all), b.roomForMetadata(r)); err != nil {
		return err
	}
	thaw := func() error { return nil }
	if b.thin != "" && len(all) > 1 {
		thaw, err = blockfs.Freeze(all)
	}
	if err == nil {
		err = afterFreeze.Hit()
	}
	for _, s := range all {
		if err != nil {
			break
		}
		if b.thin != "" {
			err = b.group.Snapshot(ctx, complete(s.Volume.ID), complete(s.ID), b.tag)
		} else {
			err = b.copyOf(ctx, r, s)
		}
	}
	if err = errors.Join(err, thaw()); err == nil {
		err = afterSnapshot.Hit()
	}
	if err != nil {
		for _, s := range all {
			err = errors.Join(err, b.discardNow(ctx, complete(s.ID)), b.discardNow(ctx, building(s.ID)))
		}
	}
	return err
}

// begun says whether all are there already. Of several, either all are or none counts: a killed Snapshot may have made
// some, and those that are made now would be of another moment.
func (b *Backend) begun(ctx context.Context, r volgroup.Report, all []volume.SnapshotSpec) (done bool, err error) {
	done = true
	for _, s := range all {
		_, found, err := b.own(r, complete(s.ID))
		if err != nil {
			return false, err
		}
		done = done && found
	}
	if done {
		return true, nil
	}
	for _, s := range all {
		if err := errors.Join(b.discard(ctx, r, complete(s.ID)), b.discard(ctx, r, building(s.ID))); err != nil {
			return false, err
		}
	}
	return false, nil
}

// snapshottable refuses what would not be of one moment.
func (b *Backend) snapshottable(all []volume.SnapshotSpec) error {
	used, block := 0, 0
	for _, s := range all {
		if !s.InUse {
			continue
		}
		used++
		if s.Volume.Block {
			block++
		}
		if b.thin == "" {
			return errs.FailedPrecondition.Errorf("volume %s is in use, and a copy of a thick volume in use would not be of one moment: end the pods that use it, or use a pool with a thin_pool", s.Volume.ID)
		}
	}
	if block > 0 && used > 1 {
		return errs.FailedPrecondition.Errorf("raw block volumes in use cannot be frozen, so a snapshot of %d volumes would not be of one moment: end the pods that use them", used)
	}
	return nil
}

// copyOf makes a snapshot of a thick volume.
func (b *Backend) copyOf(ctx context.Context, r volgroup.Report, s volume.SnapshotSpec) error {
	src, err := b.source(r, volume.Source{Volume: s.Volume.ID})
	if err != nil {
		return err
	}
	name := building(s.ID)
	b.growing.Lock()
	err = b.group.Create(ctx, name, b.tag, src.Size)
	b.growing.Unlock()
	if err != nil {
		return err
	}
	to, err := b.open(ctx, name, os.O_RDWR)
	if err != nil {
		return err
	}
	err = errors.Join(b.copyFrom(ctx, r, to, volume.Source{Volume: s.Volume.ID}), to.Close())
	if err != nil {
		return err
	}
	return errors.Join(b.group.Deactivate(ctx, name), b.group.Rename(ctx, name, complete(s.ID)))
}

// RemoveSnapshot implements volume.Snapshots.
func (b *Backend) RemoveSnapshot(ctx context.Context, id string) error {
	r, err := b.current(ctx)
	if err != nil {
		return err
	}
	return errors.Join(b.discard(ctx, r, complete(id)), b.discard(ctx, r, building(id)))
}

// Changed implements volume.Snapshots: the kernel does not say here what has changed.
func (b *Backend) Changed(context.Context, string, string) ([]volume.Range, error) {
	return nil, errs.FailedPrecondition.Errorf("a pool of logical volumes does not tell which blocks have changed: use a loop pool on xfs or btrfs for that")
}

// Thaw implements volume.Snapshots.
func (b *Backend) Thaw(_ context.Context, mounted *os.File) error { return blockfs.Thaw(mounted) }

// erase makes a thick volume zero from its end, and shortens it by what is done: where it is, LVM's metadata says.
func (b *Backend) erase(ctx context.Context, v volgroup.Volume) error {
	const step = 8 << 30
	for size := v.Size; size > 0; {
		dev, err := b.open(ctx, v.Name, os.O_RDWR|os.O_EXCL)
		if err != nil {
			return err
		}
		from := max(0, size-step) / b.extent * b.extent
		if err := errors.Join(blockdev.Zero(ctx, dev, from, size, nil), dev.Sync(), dev.Close(), afterErase.Hit()); err != nil {
			return err
		}
		if from == 0 {
			break
		}
		if err := b.group.Reduce(ctx, v.Name, from); err != nil {
			return err
		}
		size = from
	}
	return nil
}
