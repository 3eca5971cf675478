// Package btrfs is the backend whose volumes are subvolumes: made, snapshotted and cloned in no time. The limit of a
// volume is one of btrfs's simple quota (Linux 6.7) on a group of level 1 that the subvolume is born in, so that
// subvolumes that a tenant makes inside are counted with it. The classic quota does not hold against that, and is
// refused.
//
// Simple quota charges an extent to the subvolume it was written in, for as long as anything holds it. So what a
// snapshot holds stays charged to its origin; the domain raises the origin's limit by as much (Spec.Held).
//
// btrfs is spoken to by ioctl alone; no program is started.
package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	afterGroup     = failpoint.New("csi.btrfs.after_group")
	afterSubvolume = failpoint.New("csi.btrfs.after_subvolume")
	afterRename    = failpoint.New("csi.btrfs.after_rename")
	afterSnapshot  = failpoint.New("csi.btrfs.after_snapshot")
	afterTrash     = failpoint.New("csi.btrfs.after_trash")
)

// Backend is one pool of subvolumes. Use [New].
type Backend struct {
	pooldir.Trees
	pool   *pool.Pool
	medium string
	sysfs  string        // /sys/fs/btrfs/UUID
	proof  pooldir.Proof // that the quota holds

	groups sync.RWMutex // read: a group is being made and has no member yet; write: groups without members are removed
}

var _ volume.Backend = (*Backend)(nil)

// New switches the simple quota on and proves that it holds. A file system on which it does not is refused.
func New(p *pool.Pool) (*Backend, error) {
	b := &Backend{pool: p, Trees: pooldir.Trees{Pool: p, FSType: "btrfs", Kind: "subvolume"}}
	d, err := p.Dir()
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	s, err := d.Space()
	if err != nil {
		return nil, err
	}
	if s.FSType != unix.BTRFS_SUPER_MAGIC {
		return nil, errs.FailedPrecondition.Errorf("%s is not on btrfs: use the loop backend there", p.Path())
	}
	f, err := d.Sub(pool.Volumes)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only ioctls
	if err := enableQuota(f); err != nil {
		return nil, errs.FailedPrecondition.Errorf("%s: simple quota cannot be switched on (Linux 6.7 has it): %w", p.Path(), err)
	}
	uuid, err := fsid(f)
	if err != nil {
		return nil, err
	}
	b.sysfs = "/sys/fs/btrfs/" + uuid
	if b.medium, err = pooldir.Medium(p); err != nil {
		return nil, err
	}
	mode, err := os.ReadFile(b.sysfs + "/qgroups/mode")
	if err != nil || strings.TrimSpace(string(mode)) != "squota" {
		return nil, errs.FailedPrecondition.Errorf("%s has btrfs's classic quota (%s), which a tenant can leave: switch it off (btrfs quota disable) and start berth-csi again: %w",
			p.Path(), strings.TrimSpace(string(mode)), errors.Join(err, unix.EOPNOTSUPP))
	}
	if err := b.proof.AtStart(func() error { return b.try(d) }); err != nil {
		return nil, err
	}
	return b, nil
}

// try makes a volume of 1 MiB with a subvolume in it, as a tenant might, and writes until it is stopped.
func (b *Backend) try(d *pool.Dir) (err error) {
	const id = ".probe"
	number := 1<<47 | uint64(time.Now().UnixNano())>>20 // a group that may be left of an earlier proof is another
	building, err := d.Sub(pool.Building)
	if err != nil {
		return err
	}
	defer building.Close() //nolint:errcheck // only ioctls
	if err := errors.Join(b.discard(d, pool.Building+"/"+id, number), createGroup(building, number), limitGroup(building, number, 1<<20)); err != nil {
		return err
	}
	if err := makeSubvolume(building, id, nil, number, false); err != nil {
		return pool.Full(err)
	}
	defer func() { err = errors.Join(err, b.discard(d, pool.Building+"/"+id, number)) }()
	vol, err := d.Sub(pool.Building + "/" + id)
	if err != nil {
		return err
	}
	defer vol.Close() //nolint:errcheck // only ioctls
	if err := makeSubvolume(vol, "nested", nil, 0, false); err != nil {
		return pool.Full(err)
	}
	f, err := d.Beneath(pool.Building+"/"+id+"/nested/file", unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // thrown away
	chunk := make([]byte, 256<<10)
	for range 16 {
		_, err := f.Write(chunk)
		if errors.Is(err, unix.EDQUOT) {
			return nil
		}
		if err != nil {
			return pool.Full(err)
		}
	}
	return errs.FailedPrecondition.Errorf("%s: 4 MiB could be written below a limit of 1 MiB: this kernel's simple quota does not hold", b.pool.Path())
}

// Traits implements volume.Store.
func (b *Backend) Traits() volume.Traits {
	return volume.Traits{FSTypes: []string{"btrfs"}, MinSize: 1 << 20, Granularity: 4096, LiveSnapshots: true, Charged: true, Limited: true}
}

// Ensure implements volume.Store.
func (b *Backend) Ensure(_ context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	if there, err := d.Exists(pooldir.Path(pool.Volumes, v.ID)); there || err != nil {
		return err
	}
	if err := b.proof.Once(func() error { return b.try(d) }); err != nil {
		return err
	}
	if err := b.discard(d, pooldir.Path(pool.Building, v.ID), v.Number); err != nil { // a killed Ensure's
		return pool.Full(err)
	}
	b.groups.RLock()
	defer b.groups.RUnlock()
	if err := b.build(d, v); err != nil {
		return errors.Join(pool.Full(err), b.discard(d, pooldir.Path(pool.Building, v.ID), v.Number))
	}
	if err := d.Rename(pooldir.Path(pool.Building, v.ID), pooldir.Path(pool.Volumes, v.ID), false); err != nil {
		return pool.Full(err)
	}
	return afterRename.Hit()
}

func (b *Backend) build(d *pool.Dir, v volume.Spec) error {
	building, err := d.Sub(pool.Building)
	if err != nil {
		return err
	}
	defer building.Close() //nolint:errcheck // only ioctls
	var source *os.File
	if !v.Source.None() {
		name := pooldir.Source(v.Source)
		if source, err = d.Sub(name); err != nil {
			return errs.NotFound.Errorf("the source's subvolume %s: %w", name, err)
		}
		defer source.Close() //nolint:errcheck // read only
	}
	if err := errors.Join(createGroup(building, v.Number), limitGroup(building, v.Number, v.Capacity+v.Held), afterGroup.Hit()); err != nil {
		return err
	}
	if err := makeSubvolume(building, v.ID, source, v.Number, false); err != nil {
		return err
	}
	if len(v.Tuning) > 0 {
		if err := b.tuneNew(d, v); err != nil {
			return err
		}
	}
	return afterSubvolume.Hit()
}

// Commit implements volume.Store.
func (b *Backend) Commit(_ context.Context, v volume.Spec) error {
	d, f, err := b.Open(v.ID)
	if err != nil {
		return err
	}
	return errors.Join(commit(f), f.Close(), d.Close())
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
	return pool.Full(errors.Join(b.discard(d, pooldir.Path(pool.Volumes, v.ID), v.Number), b.discard(d, pooldir.Path(pool.Building, v.ID), v.Number), afterTrash.Hit()))
}

// discard moves a subvolume into the trash, whatever its tenant has done to its root. Its limit is lifted, because
// removing a subvolume inside one that is full is EDQUOT.
func (b *Backend) discard(d *pool.Dir, name string, number uint64) error {
	f, err := d.Sub(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = b.limit(d, number, unlimited)
	if errors.Is(err, unix.ENOENT) { // killed before it had a group
		err = nil
	}
	return errors.Join(err, writable(f), f.Close(), d.Remove(name))
}

// Resize implements volume.Store.
func (b *Backend) Resize(_ context.Context, v volume.Spec) error {
	d, f, err := b.Open(v.ID)
	if err != nil {
		return err
	}
	return errors.Join(b.limit(d, v.Number, v.Capacity+v.Held), f.Close(), d.Close())
}

// limit sets a group's limit, by way of a directory that is outside the group: in one that is full, even that is
// EDQUOT.
func (b *Backend) limit(d *pool.Dir, number uint64, bytes int64) error {
	f, err := d.Sub(pool.Volumes)
	if err != nil {
		return err
	}
	return errors.Join(limitGroup(f, number, bytes), f.Close())
}

// Footprint implements volume.Store.
func (b *Backend) Footprint(ctx context.Context, v volume.Spec) (int64, error) {
	if err := b.Commit(ctx, v); err != nil { // extents are charged when they are written back
		return 0, err
	}
	return b.charged(v.Number)
}

// charged is what is charged to a volume's group.
func (b *Backend) charged(number uint64) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("%s/qgroups/1_%d/referenced", b.sysfs, number))
	if err != nil {
		return 0, fmt.Errorf("the volume's quota group: %w", err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
