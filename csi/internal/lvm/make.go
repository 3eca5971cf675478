package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/volgroup"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Ensure implements volume.Store.
func (b *Backend) Ensure(ctx context.Context, v volume.Spec) error {
	r, err := b.current(ctx)
	if err != nil {
		return err
	}
	if _, found, err := b.own(r, complete(v.ID)); found || err != nil {
		return err
	}
	if err := errors.Join(b.discard(ctx, r, building(v.ID)), b.roomForMetadata(r)); err != nil { // a killed Ensure's
		return err
	}
	if err := b.build(ctx, r, v); err != nil {
		return errors.Join(err, b.discardNow(ctx, building(v.ID)))
	}
	if err := b.group.Rename(ctx, building(v.ID), complete(v.ID)); err != nil {
		return err
	}
	return afterRename.Hit()
}

// build makes the volume under its name for what is not complete, and its first content.
func (b *Backend) build(ctx context.Context, r volgroup.Report, v volume.Spec) error {
	name := building(v.ID)
	switch {
	case b.thin != "" && !v.Source.None():
		if err := b.cloneThin(ctx, r, v); err != nil {
			return err
		}
	case b.thin != "":
		if err := b.group.CreateThin(ctx, b.thin, name, b.tag, v.Capacity); err != nil {
			return err
		}
	default:
		b.growing.Lock()
		err := b.group.Create(ctx, name, b.tag, v.Capacity)
		b.growing.Unlock()
		if err != nil {
			return err
		}
	}
	if err := afterCreate.Hit(); err != nil {
		return err
	}
	dev, err := b.open(ctx, name, os.O_RDWR)
	if err != nil {
		return err
	}
	return errors.Join(b.fill(ctx, r, dev, v), dev.Sync(), dev.Close(), beforeRename.Hit())
}

// fill gives a new volume its first content.
func (b *Backend) fill(ctx context.Context, r volgroup.Report, dev *os.File, v volume.Spec) error {
	size, err := blockdev.Size(dev)
	if err != nil {
		return err
	}
	switch {
	case b.thin != "" && !v.Source.None(): // the clone has it
		return nil
	case !v.Source.None():
		if v.Block {
			if err := blockdev.Zero(ctx, dev, 0, size, nil); err != nil {
				return err
			}
		}
		return b.copyFrom(ctx, r, dev, v.Source)
	case b.thin != "" && v.Block: // its blocks are zero
		return nil
	case v.Block:
		return blockdev.Zero(ctx, dev, 0, size, nil)
	}
	if err := blockdev.ZeroEdges(ctx, dev, size); err != nil {
		return err
	}
	return mkfs.NewOn(ctx, v.FSType, dev, v.Capacity)
}

// source is the volume that another one starts as a copy of.
func (b *Backend) source(r volgroup.Report, s volume.Source) (volgroup.Volume, error) {
	id := s.Snapshot
	if s.Volume != "" {
		id = s.Volume
	}
	v, found, err := b.own(r, complete(id))
	if err == nil && !found {
		err = errs.NotFound.Errorf("the source's volume %s/%s is not there", b.group.Name(), complete(id))
	}
	return v, err
}

func (b *Backend) cloneThin(ctx context.Context, r volgroup.Report, v volume.Spec) error {
	src, err := b.source(r, v.Source)
	if err != nil {
		return err
	}
	if err := b.group.Snapshot(ctx, src.Name, building(v.ID), b.tag); err != nil {
		return err
	}
	if v.Capacity <= src.Size {
		return nil
	}
	return b.group.Extend(ctx, building(v.ID), v.Capacity)
}

// copyFrom copies a thick source, which nobody may be writing: the domain has seen to it that it is at rest.
func (b *Backend) copyFrom(ctx context.Context, r volgroup.Report, dev *os.File, s volume.Source) error {
	src, err := b.source(r, s)
	if err != nil {
		return err
	}
	_, missing := b.group.Device(src.Name)
	from, err := b.open(ctx, src.Name, os.O_RDONLY)
	if err != nil {
		return err
	}
	err = errors.Join(blockdev.Copy(ctx, dev, from, src.Size), from.Close())
	if missing != nil { // as it was
		err = errors.Join(err, b.group.Deactivate(ctx, src.Name))
	}
	return err
}

// open opens the device of a volume, active or not.
func (b *Backend) open(ctx context.Context, name string, flags int) (*os.File, error) {
	d, err := b.group.Activate(ctx, name)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(d.Path(), flags, 0)
}

// discard moves a volume of ours into the trash; one that is not there is fine.
func (b *Backend) discard(ctx context.Context, r volgroup.Report, name string) error {
	if _, found, err := b.own(r, name); !found || err != nil {
		return err
	}
	if err := b.group.Deactivate(ctx, name); err != nil {
		return err
	}
	trash := trashPrefix + name[len(prefix):] + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	return errors.Join(b.group.Rename(ctx, name, trash), afterTrash.Hit())
}

// discardNow is discard after what was made since the last report.
func (b *Backend) discardNow(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	r, err := b.current(ctx)
	if err != nil {
		return err
	}
	return b.discard(ctx, r, name)
}

// Remove implements volume.Store.
func (b *Backend) Remove(ctx context.Context, v volume.Spec) error {
	if _, err := b.letGo(ctx, complete(v.ID)); err != nil {
		return err
	}
	r, err := b.current(ctx)
	if err != nil {
		return err
	}
	return errors.Join(b.discard(ctx, r, complete(v.ID)), b.discard(ctx, r, building(v.ID)))
}

// Resize implements volume.Store.
func (b *Backend) Resize(ctx context.Context, v volume.Spec) error {
	r, err := b.current(ctx)
	if err != nil {
		return err
	}
	have, found, err := b.own(r, complete(v.ID))
	if err != nil {
		return err
	}
	if !found {
		return b.lost(v.ID)
	}
	if have.Size < v.Capacity {
		if err := b.extend(ctx, r, have, v); err != nil {
			return err
		}
	}
	for _, dev := range b.readers(have.Name) {
		err = errors.Join(err, loopdev.Grow(dev))
	}
	return errors.Join(err, afterExtend.Hit())
}

// extend makes a volume larger. What a thick raw volume grows by is made zero first, under another name, and then given
// to it extent by extent: its user may read it the moment it is there.
func (b *Backend) extend(ctx context.Context, r volgroup.Report, have volgroup.Volume, v volume.Spec) error {
	if b.thin != "" || !v.Block {
		b.growing.Lock()
		defer b.growing.Unlock()
		return b.group.Extend(ctx, have.Name, v.Capacity)
	}
	name := building(v.ID)
	if err := b.discard(ctx, r, name); err != nil {
		return err
	}
	if err := b.group.Create(ctx, name, b.tag, r.RoundUp(v.Capacity)-have.Size); err != nil {
		return err
	}
	undo := func(err error) error { return errors.Join(err, b.discardNow(ctx, name)) }
	dev, err := b.open(ctx, name, os.O_RDWR)
	if err != nil {
		return undo(err)
	}
	size, err := blockdev.Size(dev)
	if err == nil {
		err = errors.Join(blockdev.Zero(ctx, dev, 0, size, nil), dev.Sync())
	}
	if err = errors.Join(err, dev.Close()); err != nil {
		return undo(err)
	}
	if r, err = b.current(ctx); err != nil {
		return undo(err)
	}
	clean, found, err := b.own(r, name)
	if err != nil || !found {
		return undo(errors.Join(err, fmt.Errorf("%s/%s is gone", b.group.Name(), name)))
	}
	b.growing.Lock() // nobody of ours takes the extents in between; if others do, Extend fails
	defer b.growing.Unlock()
	if err := b.group.Deactivate(ctx, name); err != nil {
		return undo(err)
	}
	if err := b.group.Remove(ctx, name); err != nil {
		return undo(err)
	}
	return b.group.Extend(ctx, have.Name, v.Capacity, clean.Extents...)
}

// lost is the error of a volume that a record says is there.
func (b *Backend) lost(id string) error {
	return errs.Internal.Errorf("the logical volume of volume %s is gone from %s: its data is lost; delete the volume", id, b.group.Name())
}

// Footprint implements volume.Store: once the volume is overwritten, all of the snapshot's blocks are its own.
func (b *Backend) Footprint(_ context.Context, v volume.Spec) (int64, error) {
	return (v.Capacity + b.extent - 1) / b.extent * b.extent, nil
}
