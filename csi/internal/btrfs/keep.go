package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
)

// ours is the least number of a volume's group; see volume.Manager: numbers start at the time of the first volume.
const ours = 1 << 40

// metadata is the share of a file system, one part of so many, that is not promised: trees need room too.
const metadata = 20

// Medium implements volume.Keeper.
func (b *Backend) Medium() string { return b.medium }

// Space implements volume.Keeper.
func (b *Backend) Space(_ context.Context, all []volume.Spec) (volume.Space, error) {
	s, err := pooldir.Space(b.pool, func(*pool.Dir) (int64, error) { return b.unbacked(all) })
	keep := s.Total / metadata
	s.Total, s.Free = s.Total-keep, max(0, s.Free-keep)
	return s, err
}

// unbacked is volume.Space's.
func (b *Backend) unbacked(all []volume.Spec) (int64, error) {
	var sum int64
	for _, v := range all {
		if v.Fresh { // has next to nothing; asking of each would make a burst of creates quadratic
			sum += v.Capacity + v.Held
			continue
		}
		n, err := b.charged(v.Number)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // not there yet: it is being made
			return 0, err
		}
		sum += max(0, v.Capacity+v.Held-n)
	}
	return sum, nil
}

// Purge implements volume.Keeper: subvolumes from the innermost out, then the groups that nothing is charged to.
func (b *Backend) Purge(ctx context.Context) (left int, err error) {
	left, err = pooldir.Purge(ctx, b.pool, func(d *pool.Dir, name string) (bool, error) { return false, b.purge(d, name) })
	return left, errors.Join(err, b.sweep())
}

func (b *Backend) purge(d *pool.Dir, name string) error {
	f, err := d.Sub(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	id, err := subvolumeID(f)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != rootInode {
		return fmt.Errorf("%s is no subvolume, it is left alone: %w", name, errors.Join(err, unix.EINVAL))
	}
	return destroyAll(f, id)
}

func destroyAll(f *os.File, id uint64) error {
	below, err := children(f, id)
	if err != nil {
		return err
	}
	for _, c := range below {
		if err := destroyAll(f, c); err != nil {
			return err
		}
	}
	err = destroy(f, id)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// sweep removes groups of ours that have neither members nor anything charged to them. Another's are left alone.
func (b *Backend) sweep() error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	b.groups.Lock()
	defer b.groups.Unlock()
	dirs, err := filepath.Glob(b.sysfs + "/qgroups/1_*")
	if err != nil {
		return err
	}
	f, err := d.Sub(pool.Volumes)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only ioctls
	for _, dir := range dirs {
		n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(dir), "1_"), 10, 48)
		if err != nil || n < ours {
			continue
		}
		if used, err := b.charged(n); err != nil || used > 0 {
			continue // gone meanwhile, or held by a snapshot or a clone
		}
		if err := removeGroup(f, n); err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: it has a member, the volume is empty
			return err
		}
	}
	return nil
}

// Health implements volume.Keeper.
func (b *Backend) Health(ctx context.Context) []volume.Condition {
	s, err := b.Space(ctx, nil)
	all := pooldir.Unwell(b.pool, s, err)
	if err != nil {
		return all
	}
	if mode, err := os.ReadFile(b.sysfs + "/qgroups/mode"); err != nil || strings.TrimSpace(string(mode)) != "squota" {
		all = append(all, volume.Condition{Reason: "QuotaOff", Message: "the simple quota of the pool at " + b.pool.Path() + " was switched off: volumes have no limit; restart berth-csi"})
	}
	return all
}
