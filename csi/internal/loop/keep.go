package loop

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
)

// Medium implements volume.Keeper.
func (b *Backend) Medium() string { return b.medium }

// Space implements volume.Keeper.
func (b *Backend) Space(_ context.Context, all []volume.Spec) (volume.Space, error) {
	return pooldir.Space(b.pool, func(d *pool.Dir) (int64, error) { return unbacked(d, all) })
}

// unbacked is volume.Space's. A thick file that shares nothing has all it was promised once it is made. One that shares
// blocks needs, at worst, all of them anew.
func unbacked(d *pool.Dir, all []volume.Spec) (int64, error) {
	var n int64
	for _, v := range all {
		switch {
		case v.Thin || v.Shared:
			n += v.Capacity
		case v.Missing > 0:
			have, err := onDisk(d, v.ID)
			if err != nil {
				return 0, err
			}
			n += max(0, min(v.Missing, v.Capacity-have))
		}
	}
	return n, nil
}

// onDisk is what the file of a volume has allocated, in bytes, also of one that is being made.
func onDisk(d *pool.Dir, id string) (int64, error) {
	for _, dir := range []string{pool.Building, pool.Volumes} { // the way it goes: whoever is renamed in between is met
		var st unix.Stat_t
		err := unix.Fstatat(d.Fd(), file(dir, id), &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		return st.Blocks * 512, err
	}
	return 0, nil
}

// Footprint implements volume.Store: once the volume is overwritten, all of the snapshot's blocks are its own.
func (b *Backend) Footprint(_ context.Context, v volume.Spec) (int64, error) {
	return roundUp(v.Capacity), nil
}

// Inventory implements volume.Keeper.
func (b *Backend) Inventory(context.Context) (volumes, snapshots []string, err error) {
	return pooldir.Inventory(b.pool, ext)
}

// eraseSlice is how much of a file is freed at once: freeing a large one in one go stalls the file system's journal
// for all others (42 ms per GiB here).
const eraseSlice = 256 << 20

// Purge implements volume.Keeper. A file that a device still holds is left for the next time.
func (b *Backend) Purge(ctx context.Context) (left int, err error) {
	return pooldir.Purge(ctx, b.pool, erase)
}

func erase(d *pool.Dir, name string) (held bool, err error) {
	f, err := d.Beneath(name, unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // the file goes
	if all, err := loopdev.Find(f); err != nil || len(all) > 0 {
		return true, err
	}
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	for size := fi.Size(); size > eraseSlice; {
		size -= eraseSlice
		if err := f.Truncate(size); err != nil && !errors.Is(err, unix.ENOSPC) { // no room to split an extent: all at once
			return false, err
		}
	}
	if err := unix.Unlinkat(d.Fd(), name, 0); err != nil {
		return false, &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return false, nil
}

// Health implements volume.Keeper.
func (b *Backend) Health(ctx context.Context) []volume.Condition {
	s, err := b.Space(ctx, nil)
	return pooldir.Unwell(b.pool, s, err)
}
