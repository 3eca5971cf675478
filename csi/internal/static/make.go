package static

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// free are the devices that are blank and not among those that are taken, the smallest first.
func (b *Backend) free(d *pool.Dir, used map[string]record) ([]disk, error) {
	all, err := b.disks()
	if err != nil {
		return nil, err
	}
	var out []disk
	for _, k := range b.distinct(all, used) {
		if _, is := used[k.path]; is {
			continue
		}
		r, there, err := read(d, blank+"/"+k.key())
		if err != nil {
			return nil, err
		}
		if there && r.is(k) {
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b disk) int { return cmp.Compare(a.size, b.size) })
	return out, nil
}

// Ensure implements volume.Store.
func (b *Backend) Ensure(ctx context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	if there, err := d.Exists(pool.Volumes + "/" + v.ID); there || err != nil {
		return err
	}
	k, err := b.claim(d, v)
	if err != nil {
		return pool.Full(err)
	}
	if err := errors.Join(afterClaim.Hit(), fill(ctx, k, v), beforeRename.Hit()); err != nil {
		return errors.Join(err, d.Discard(pool.Building+"/"+v.ID))
	}
	b.claiming.Lock() // who looks for free devices looks into one directory after the other
	err = d.Rename(pool.Building+"/"+v.ID, pool.Volumes+"/"+v.ID, true)
	b.claiming.Unlock()
	return errors.Join(pool.Full(err), afterRename.Hit())
}

// claim records the device that a volume gets: the one that a killed Ensure has taken, or the smallest free one that it
// fits on. From then on it is not blank any more.
func (b *Backend) claim(d *pool.Dir, v volume.Spec) (disk, error) {
	b.claiming.Lock()
	defer b.claiming.Unlock()
	name := pool.Building + "/" + v.ID
	r, there, err := read(d, name)
	if err != nil {
		return disk{}, err
	}
	if there {
		k, err := r.disk()
		if err != nil {
			return disk{}, err
		}
		return k, remove(d, blank+"/"+k.key())
	}
	used, err := taken(d)
	if err != nil {
		return disk{}, err
	}
	all, err := b.free(d, used)
	if err != nil {
		return disk{}, err
	}
	for _, k := range all {
		if k.size < v.Capacity {
			continue
		}
		if err := b.stillBlank(k); err != nil { // somebody has used it: it is looked at anew
			b.refuse(k.path, err.Error())
			if err := remove(d, blank+"/"+k.key()); err != nil {
				return disk{}, err
			}
			continue
		}
		if err := write(d, name, k.record()); err != nil {
			return disk{}, err
		}
		return k, remove(d, blank+"/"+k.key())
	}
	return disk{}, errs.ResourceExhausted.Errorf("no device of the pool at %s with %d bytes is free", b.pool.Path(), v.Capacity)
}

// stillBlank says why a device that was blank is not.
func (b *Backend) stillBlank(k disk) error {
	dev, err := blockdev.Exclusive(k.node)
	if err != nil {
		return err
	}
	what, err := found(dev, k.size)
	if err == nil && what != "" {
		err = errs.FailedPrecondition.Errorf("%s was blank and holds %s now", k.path, what)
	}
	return errors.Join(err, dev.Close())
}

// fill makes the file system. What a killed mkfs has left, which is nobody's, is formatted over.
func fill(ctx context.Context, k disk, v volume.Spec) error {
	if v.Block {
		return nil
	}
	if err := blockdev.Alone(k.node); err != nil { // mkfs wants it for itself
		return err
	}
	dev, err := os.OpenFile(k.node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := blockdev.ZeroEdges(ctx, dev, k.size); err != nil {
		return errors.Join(err, dev.Close())
	}
	return errors.Join(mkfs.NewOn(ctx, v.FSType, dev, v.Capacity), dev.Sync(), dev.Close(), afterFormat.Hit())
}

// of is the device of a volume.
func (b *Backend) of(id string) (disk, error) {
	d, err := b.pool.Dir()
	if err != nil {
		return disk{}, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	r, there, err := read(d, pool.Volumes+"/"+id)
	if err != nil {
		return disk{}, err
	}
	if !there {
		return disk{}, errs.Internal.Errorf("the record of volume %s is gone from the pool at %s: nobody knows which device it is on; delete the volume", id, b.pool.Path())
	}
	return r.disk()
}

// Remove implements volume.Store.
func (b *Backend) Remove(ctx context.Context, v volume.Spec) error {
	if err := b.Release(ctx, v); err != nil {
		return err
	}
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return errors.Join(pool.Full(errors.Join(d.Remove(pool.Volumes+"/"+v.ID), d.Discard(pool.Building+"/"+v.ID), remove(d, pool.Building+"/."+v.ID))), afterTrash.Hit())
}
