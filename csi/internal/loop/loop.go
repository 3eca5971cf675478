// Package loop is the backend whose volumes are files, attached to loop devices: a file system of their own or raw
// block. It needs nothing of the node but a directory on any file system, and its limit is the size of a device, which
// no tenant can leave. Files are allocated in full (thick) unless the pool overcommits, and read and written by direct
// I/O. Where the pool's file system has reflinks (xfs, btrfs) snapshots and clones take no time and no space;
// elsewhere they are copies, and only of volumes that nobody uses.
//
// A volume's file is made in building/, formatted there, synced and renamed: what is in volumes/ is never formatted.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

const (
	ext       = ".img"
	noCOWFlag = 0x00800000 // FS_NOCOW_FL, linux/fs.h
)

var (
	afterAllocate = failpoint.New("csi.loop.after_allocate")
	afterFormat   = failpoint.New("csi.loop.after_format")
	beforeRename  = failpoint.New("csi.loop.before_rename")
	afterRename   = failpoint.New("csi.loop.after_rename")
)

// Backend is one pool of files. Use [New].
type Backend struct {
	pool    *pool.Pool
	medium  string
	fstypes []string

	proof   pooldir.Proof // of what the file system can do
	reflink atomic.Bool   // it has reflinks, as far as is known
}

var _ volume.Backend = (*Backend)(nil)

// New tries out what the pool's file system can do. It refuses a pool on which it cannot make volumes at all, with
// the reason.
func New(p *pool.Pool) (*Backend, error) {
	types, err := mkfs.Available("loop")
	if err != nil {
		return nil, err
	}
	b := &Backend{pool: p, fstypes: types}
	if b.medium, err = pooldir.Medium(p); err != nil {
		return nil, err
	}
	if err := b.proof.AtStart(b.probe); err != nil {
		return nil, err
	}
	return b, nil
}

// probe makes a file as a volume's is made, attaches it, and finds out about reflinks.
func (b *Backend) probe() (err error) {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	const name = pool.Building + "/.probe" + ext
	f, err := d.Beneath(name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), d.Discard(name)) }()
	if err := allocate(f, 1<<20, false); err != nil {
		return fmt.Errorf("the pool at %s cannot allocate a file: %w", b.pool.Path(), err)
	}
	dev, err := loopdev.Attach(f, loopdev.Options{AutoClear: true})
	if err != nil {
		return err
	}
	if err := dev.Close(); err != nil {
		return err
	}
	clone, err := d.Beneath(name+".clone", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	b.reflink.Store(unix.IoctlFileClone(int(clone.Fd()), int(f.Fd())) == nil)
	return errors.Join(clone.Close(), d.Discard(name+".clone"))
}

// Traits implements volume.Store.
func (b *Backend) Traits() volume.Traits {
	return volume.Traits{
		Block: true, FSTypes: slices.Clone(b.fstypes), MinSize: 1 << 20, Granularity: loopdev.BlockSize,
		LiveSnapshots: b.reflink.Load(), LiveGroups: b.reflink.Load(), NodeGrows: true, MinOf: mkfs.MinSizes(b.fstypes),
	}
}

// Ensure implements volume.Store.
func (b *Backend) Ensure(ctx context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	final, building := file(pool.Volumes, v.ID), file(pool.Building, v.ID)
	if there, err := d.Exists(final); there || err != nil {
		return err
	}
	if err := b.proof.Once(b.probe); err != nil {
		return err
	}
	if err := d.Discard(building); err != nil { // a killed Ensure's
		return pool.Full(err)
	}
	f, err := d.Beneath(building, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return pool.Full(err)
	}
	defer f.Close() //nolint:errcheck // synced below, or thrown away
	if err := b.fill(ctx, d, f, v); err != nil {
		return errors.Join(pool.Full(err), d.Discard(building))
	}
	if err := errors.Join(f.Sync(), beforeRename.Hit()); err != nil {
		return errors.Join(pool.Full(err), d.Discard(building))
	}
	if err := d.Rename(building, final, true); err != nil {
		return err
	}
	return afterRename.Hit()
}

func file(dir, id string) string { return dir + "/" + id + ext }

// fill gives a new file its size and its first content.
func (b *Backend) fill(ctx context.Context, d *pool.Dir, f *os.File, v volume.Spec) error {
	size := roundUp(v.Capacity)
	if !v.Source.None() {
		if err := b.copyFrom(ctx, d, f, v.Source); err != nil {
			return err
		}
		return allocate(f, size, v.Thin)
	}
	if err := b.noCOW(f); err != nil {
		return err
	}
	if err := errors.Join(allocate(f, size, v.Thin), afterAllocate.Hit()); err != nil {
		return err
	}
	if v.Block {
		return nil
	}
	if err := mkfs.New(ctx, v.FSType, f); err != nil {
		return err
	}
	return afterFormat.Hit()
}

func roundUp(n int64) int64 {
	return (n + loopdev.BlockSize - 1) / loopdev.BlockSize * loopdev.BlockSize
}

// allocate makes f at least size bytes long, with all of them allocated unless thin. Allocated bytes read as zero
// whatever the blocks held before (fallocate(2)).
func allocate(f *os.File, size int64, thin bool) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() >= size && fi.Size() > 0 {
		return nil
	}
	if thin {
		return f.Truncate(size)
	}
	return retryInterrupted(func() error {
		return unix.Fallocate(int(f.Fd()), 0, fi.Size(), size-fi.Size())
	})
}

func retryInterrupted(do func() error) error {
	for {
		if err := do(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// noCOW keeps btrfs from copying on every write into the file; elsewhere the flag does not exist.
func (b *Backend) noCOW(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.BTRFS_SUPER_MAGIC {
		return err
	}
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|noCOWFlag)
}

// Commit implements volume.Store: Ensure has synced file and directory.
func (b *Backend) Commit(context.Context, volume.Spec) error { return nil }

// Exists implements volume.Store.
func (b *Backend) Exists(_ context.Context, id string) (bool, error) {
	d, err := b.pool.Dir()
	if err != nil {
		return false, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return d.Exists(file(pool.Volumes, id))
}

// Remove implements volume.Store.
func (b *Backend) Remove(ctx context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	if err := b.release(d, v); err != nil {
		return err
	}
	return errors.Join(pool.Full(d.Remove(file(pool.Volumes, v.ID))), pool.Full(d.Discard(file(pool.Building, v.ID))), ctx.Err())
}

// Resize implements volume.Store.
func (b *Backend) Resize(_ context.Context, v volume.Spec) error {
	d, f, err := b.open(v.ID, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // synced
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := allocate(f, roundUp(v.Capacity), v.Thin); err != nil { // no device knows of what was added: take it back
		return errors.Join(pool.Full(err), f.Truncate(fi.Size()))
	}
	if err := f.Sync(); err != nil {
		return pool.Full(err)
	}
	all, err := loopdev.Find(f)
	for _, dev := range all {
		err = errors.Join(err, loopdev.Grow(dev))
	}
	return err
}

// open opens a volume's file; one that is missing is an Internal error that says so, because the domain's record
// says that it is there.
func (b *Backend) open(id string, flags int) (*pool.Dir, *os.File, error) {
	d, err := b.pool.Dir()
	if err != nil {
		return nil, nil, err
	}
	f, err := d.Beneath(file(pool.Volumes, id), flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errs.Internal.Errorf("the file of volume %s is gone from the pool at %s: its data is lost; delete the volume: %w", id, b.pool.Path(), err)
		}
		return nil, nil, errors.Join(pool.Full(err), d.Close())
	}
	return d, f, nil
}
