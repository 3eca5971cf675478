package static

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Medium implements volume.Keeper: its disks are no other pool's.
func (b *Backend) Medium() string { return "" }

// Space implements volume.Keeper: all devices, and of those the free ones.
func (b *Backend) Space(_ context.Context, all []volume.Spec) (volume.Space, error) {
	d, err := b.pool.Dir()
	if err != nil {
		return volume.Space{}, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	s, err := d.Space()
	if err != nil {
		return volume.Space{}, err
	}
	b.claiming.Lock()
	defer b.claiming.Unlock()
	used, err := taken(d)
	if err != nil {
		return volume.Space{}, err
	}
	free, err := b.free(d, used)
	if err != nil {
		return volume.Space{}, err
	}
	out := volume.Space{InodesFree: s.InodesFree, ReadOnly: s.ReadOnly}
	var sizes []int64
	for _, k := range free {
		sizes = append(sizes, k.size)
		out.Free += k.size
	}
	out.Total = out.Free
	for _, r := range used {
		out.Total += r.Size
	}
	out.Unbacked, err = unbacked(d, sizes, all)
	return out, err
}

// unbacked is what is on free devices, whose sizes are given from the smallest on, but not on the largest that is left when
// every volume that is still being made has got its own.
func unbacked(d *pool.Dir, free []int64, all []volume.Spec) (int64, error) {
	var waiting []int64
	for _, v := range all {
		there, err := d.Exists(pool.Volumes + "/" + v.ID)
		if err == nil && !there {
			there, err = d.Exists(pool.Building + "/" + v.ID)
		}
		if err != nil {
			return 0, err
		}
		if !there {
			waiting = append(waiting, v.Capacity)
		}
	}
	return unusable(free, waiting), nil
}

// unusable is what of free devices, in order of size, no further volume can have in one piece, when each that is
// waiting gets the smallest that it fits on.
func unusable(sizes, waiting []int64) int64 {
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	left := slices.Clone(sizes)
	slices.Sort(waiting)
	for _, n := range waiting {
		if i := slices.IndexFunc(left, func(size int64) bool { return size >= n }); i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
	}
	if len(left) == 0 {
		return sum
	}
	return sum - left[len(left)-1]
}

// Inventory implements volume.Keeper.
func (b *Backend) Inventory(context.Context) (volumes, snapshots []string, err error) {
	d, err := b.pool.Dir()
	if err != nil {
		return nil, nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	for _, dir := range []string{pool.Volumes, pool.Building} {
		list, lerr := names(d, dir)
		volumes, err = append(volumes, list...), errors.Join(err, lerr)
	}
	slices.Sort(volumes)
	return slices.Compact(volumes), nil, err
}

// Purge implements volume.Keeper: it erases what is in the trash, and takes in what the operator has named since.
func (b *Backend) Purge(ctx context.Context) (left int, err error) {
	d, err := b.pool.Dir()
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	if err := b.takeIn(d); err != nil {
		return 0, err
	}
	return pooldir.Purge(ctx, b.pool, func(d *pool.Dir, name string) (bool, error) {
		if strings.HasPrefix(name, pool.Trash+"/.") { // half a record of a killed process: what it was to say is not lost
			return false, remove(d, name)
		}
		return false, b.erase(ctx, d, name)
	})
}

// takeIn puts every device into the trash that is in no record, in no use, and zero at its edges; others are refused.
func (b *Backend) takeIn(d *pool.Dir) error {
	b.claiming.Lock()
	defer b.claiming.Unlock()
	b.mu.Lock()
	b.refused = map[string]string{} // what is refused is found anew
	b.mu.Unlock()
	all, err := b.disks()
	if err != nil {
		return err
	}
	used, err := taken(d)
	if err != nil {
		return err
	}
	for _, k := range b.distinct(all, used) {
		if _, is := used[k.path]; is {
			continue
		}
		r, there, err := read(d, blank+"/"+k.key())
		if err != nil {
			return err
		}
		if there && r.is(k) {
			continue
		}
		if why := unusual(k); why != "" {
			b.refuse(k.path, why)
			continue
		}
		if err := write(d, pool.Trash+"/new."+k.key(), k.record()); err != nil {
			return err
		}
	}
	return nil
}

// unusual says why a device is not taken in.
func unusual(k disk) string {
	dev, err := blockdev.Exclusive(k.node)
	if err != nil {
		return err.Error()
	}
	defer dev.Close() //nolint:errcheck // read only
	what, err := found(dev, k.size)
	if err != nil {
		return err.Error()
	}
	if what == "" {
		return ""
	}
	return fmt.Sprintf("it holds %s; if that may be lost, make it zero: blkdiscard --zeroout %s", what, k.path)
}

// progress is how many bytes are erased between two records of how far it is.
const progress = 16 * blockdev.Slice

// erase makes a device of the trash zero, from where an earlier attempt has come to, and then blank.
func (b *Backend) erase(ctx context.Context, d *pool.Dir, name string) error {
	r, there, err := read(d, name)
	if err != nil || !there {
		return err
	}
	k, err := r.disk()
	if err != nil {
		return err
	}
	dev, err := blockdev.Exclusive(k.node)
	if err != nil {
		return err
	}
	defer dev.Close() //nolint:errcheck // synced below
	last := r.Erased
	err = blockdev.Zero(ctx, dev, r.Erased, k.size, func(at int64) error {
		if at-last < progress && at < k.size {
			return nil
		}
		last, r.Erased = at, at
		if err := dev.Sync(); err != nil {
			return err
		}
		return errors.Join(write(d, name, r), afterSlice.Hit())
	})
	if err = errors.Join(err, afterErase.Hit()); err != nil {
		return err
	}
	empty, err := blockdev.Blank(dev, k.size)
	if err == nil && !empty {
		err = errs.Internal.Errorf("%s does not read as zero after it was erased: it is not offered again", k.path)
	}
	if err != nil {
		return err
	}
	b.claiming.Lock()
	defer b.claiming.Unlock()
	if err := write(d, blank+"/"+k.key(), k.record()); err != nil {
		return err
	}
	if err := afterBlank.Hit(); err != nil {
		return err
	}
	return remove(d, name)
}

// Health implements volume.Keeper.
func (b *Backend) Health(ctx context.Context) []volume.Condition {
	s, err := b.Space(ctx, nil)
	all := pooldir.Unwell(b.pool, s, err)
	if err != nil {
		return all
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(b.refused)) {
		all = append(all, volume.Condition{Reason: "DeviceRefused", Message: fmt.Sprintf("%s is not taken: %s", path, b.refused[path])})
	}
	return all
}
