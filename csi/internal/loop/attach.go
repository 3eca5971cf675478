package loop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var afterAttach = failpoint.New("csi.loop.after_attach")

// Mount implements volume.Attacher. The device ends by itself with the last mount of it, in whatever namespace.
func (b *Backend) Mount(ctx context.Context, v volume.Spec, readOnly bool) (*os.File, error) {
	d, f, err := b.open(v.ID, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // the device has it
	if all, err := loopdev.Find(f); err != nil || len(all) > 0 {
		// One file under two devices is two caches of one file system: its end.
		return nil, errors.Join(errs.FailedPrecondition.Errorf("volume %s is still attached as %v: what uses it must end first", v.ID, all), err)
	}
	if err := mkfs.Repair(ctx, v.FSType, f); err != nil {
		return nil, err
	}
	if !readOnly {
		if err := mkfs.Grow(ctx, v.FSType, f, v.Capacity); err != nil {
			return nil, err
		}
	}
	dev, err := loopdev.Attach(f, loopdev.Options{ReadOnly: readOnly, AutoClear: true})
	if err != nil {
		return nil, err
	}
	defer dev.Close() //nolint:errcheck // the mount holds the device
	if err := errors.Join(afterAttach.Hit(), b.tuneNew(dev, v)); err != nil {
		return nil, err
	}
	var options []string
	if v.FSType == "xfs" {
		options = append(options, "nouuid") // a clone has its source's UUID
	}
	tree, err := mount.FileSystem(v.FSType, dev.Name(), readOnly, options...)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.ID, err)
	}
	if !readOnly && v.FSType == "xfs" {
		if err := growXFS(tree, v); err != nil {
			return nil, errors.Join(err, tree.Close())
		}
	}
	return tree, nil
}

// Device implements volume.Attacher.
func (b *Backend) Device(_ context.Context, v volume.Spec, readOnly bool) (string, error) {
	d, f, err := b.open(v.ID, unix.O_RDWR)
	if err != nil {
		return "", err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // the device has it
	all, err := loopdev.Find(f)
	if err != nil {
		return "", err
	}
	for _, dev := range all { // a reader's device is another one: what it may not write, it cannot
		if ro, err := loopdev.ReadOnly(dev); err != nil || ro == readOnly {
			return dev, err
		}
	}
	dev, err := loopdev.Attach(f, loopdev.Options{ReadOnly: readOnly})
	if err != nil {
		return "", err
	}
	return dev.Name(), errors.Join(afterAttach.Hit(), b.tuneNew(dev, v), dev.Close())
}

// Holds implements volume.Attacher.
func (b *Backend) Holds(_ context.Context, v volume.Spec, p mount.Point) (bool, error) {
	d, f, err := b.open(v.ID, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // read only
	all, err := loopdev.Find(f)
	for _, dev := range all {
		var st unix.Stat_t
		if serr := unix.Stat(dev, &st); serr == nil && (st.Rdev == p.Dev || st.Rdev == p.Rdev) {
			return true, nil
		}
	}
	return false, err
}

// Release implements volume.Attacher.
func (b *Backend) Release(_ context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return b.release(d, v)
}

func (b *Backend) release(d *pool.Dir, v volume.Spec) error {
	f, err := d.Beneath(file(pool.Volumes, v.ID), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // never made, or removed already
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	return loopdev.Release(f)
}

// Grow implements volume.Attacher.
func (b *Backend) Grow(_ context.Context, v volume.Spec, root *os.File) error {
	d, f, err := b.open(v.ID, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	defer f.Close() //nolint:errcheck // read only
	all, err := loopdev.Find(f)
	for _, dev := range all {
		err = errors.Join(err, loopdev.Grow(dev))
	}
	if err != nil || root == nil {
		return err
	}
	if v.FSType == "xfs" {
		return growXFS(root, v)
	}
	return growExt4(root, all, v)
}

// The ioctls of online growth: fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h.
const (
	ext4ResizeFS   = 0x40086610 // _IOW('f', 16, __u64)
	xfsGrowData    = 0x4010586e // _IOW('X', 110, struct xfs_growfs_data)
	xfsFSGeometry1 = 0x80705864 // _IOR('X', 100, struct xfs_fsop_geom_v1)
)

// growExt4 makes a mounted ext4 as large as its volume.
func growExt4(root *os.File, devices []string, v volume.Spec) error {
	for _, path := range devices { // the device's cache has the superblock as the kernel has it
		dev, err := os.Open(path)
		if err != nil {
			return err
		}
		have, err := mkfs.Ext4Size(dev)
		if err := errors.Join(err, dev.Close()); err != nil {
			return err
		}
		if have+mkfs.Slack > v.Capacity {
			return nil
		}
	}
	f, err := openDir(root)
	if err != nil {
		return err
	}
	defer f.Close()                                  //nolint:errcheck // only ioctls
	blocks := uint64(v.Capacity / loopdev.BlockSize) //nolint:gosec // sizes fit
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		return errs.FailedPrecondition.Errorf("volume %s: a mounted ext4 is grown with CAP_SYS_RESOURCE only, which berth-csi does not have here: it is grown when the volume is next staged", v.ID)
	}
	return fmt.Errorf("volume %s: EXT4_IOC_RESIZE_FS: %w", v.ID, errno)
}

// growXFS makes a mounted xfs as large as its volume.
func growXFS(root *os.File, v volume.Spec) error {
	f, err := openDir(root) // a tree's own descriptor is O_PATH
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only ioctls
	// struct xfs_fsop_geom_v1: blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct
	// (__u32 each), then datablocks (__u64)
	var geo [112]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), xfsFSGeometry1, uintptr(unsafe.Pointer(&geo[0]))); errno != 0 {
		return fmt.Errorf("volume %s: XFS_IOC_FSGEOMETRY_V1: %w", v.ID, errno)
	}
	block, have := int64(binary.NativeEndian.Uint32(geo[:])), binary.NativeEndian.Uint64(geo[32:])
	want := struct {
		blocks uint64
		maxpct uint32
		_      uint32
	}{blocks: uint64(v.Capacity / block), maxpct: binary.NativeEndian.Uint32(geo[28:])} //nolint:gosec // sizes fit
	if want.blocks <= have {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), xfsGrowData, uintptr(unsafe.Pointer(&want))); errno != 0 {
		return fmt.Errorf("volume %s: XFS_IOC_FSGROWFSDATA: %w", v.ID, errno)
	}
	return nil
}

// openDir opens what an O_PATH descriptor or a tree stands for.
func openDir(root *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), root.Name()), nil
}

// Usage implements volume.Attacher.
func (b *Backend) Usage(_ context.Context, _ volume.Spec, root *os.File) (volume.Usage, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return volume.Usage{}, &os.PathError{Op: "fstatfs", Path: root.Name(), Err: err}
	}
	return volume.Usage{
		Total: int64(st.Blocks) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize, Available: int64(st.Bavail) * st.Bsize, //nolint:gosec // sizes fit
		Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree), InodesAvail: int64(st.Ffree), //nolint:gosec // counts fit
	}, nil
}
