// Package blockfs is what volumes with a file system of their own on a block device have in common, whatever the device
// is: how it is mounted, grown, measured and frozen. It makes no device and no file system.
package blockfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// BlockSize is that of the page cache and of the file systems that are made here, in bytes.
const BlockSize = 4096

// RoundUp rounds bytes up to whole blocks.
func RoundUp(n int64) int64 { return (n + BlockSize - 1) / BlockSize * BlockSize }

// Prepare brings the file system on a device that is not mounted into order, and makes it as large as the volume is,
// where that is done at rest (ext4). Aborted: a program that a killed driver has started still works on it.
func Prepare(ctx context.Context, v volume.Spec, dev *os.File, readOnly bool) error {
	if err := claim(v, dev, readOnly); err != nil {
		return err
	}
	if err := mkfs.Repair(ctx, v.FSType, dev); err != nil || readOnly {
		return err
	}
	return mkfs.Grow(ctx, v.FSType, dev, v.Capacity)
}

// claim locks what a file system is on until dev is closed here and in every program that it is handed to (F_OFD_SETLK,
// Linux 3.15), which may outlive this process.
func claim(v volume.Spec, dev *os.File, readOnly bool) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if readOnly {
		lock.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(dev.Fd(), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return errs.Aborted.Errorf("volume %s: its file system is still being checked or grown; try again when that is done", v.ID)
	}
	if err != nil {
		return fmt.Errorf("volume %s: lock: %w", v.ID, err)
	}
	return nil
}

// Mount is a detached mount of the file system on a device, as large as the volume is where that is done mounted (xfs).
func Mount(v volume.Spec, device string, readOnly bool) (*os.File, error) {
	var options []string
	if v.FSType == "xfs" {
		options = append(options, "nouuid") // a clone has its source's UUID
	}
	tree, err := mount.FileSystem(v.FSType, device, readOnly, options...)
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

// Grow makes what is mounted at root as large as its volume; devices are the paths of what it is on.
func Grow(v volume.Spec, root *os.File, devices ...string) error {
	if v.FSType == "xfs" {
		return growXFS(root, v)
	}
	return growExt4(root, devices, v)
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
	defer f.Close()                          //nolint:errcheck // only ioctls
	blocks := uint64(v.Capacity / BlockSize) //nolint:gosec // sizes fit
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

// Usage is what statfs(2) says of a mounted volume.
func Usage(root *os.File) (volume.Usage, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return volume.Usage{}, &os.PathError{Op: "fstatfs", Path: root.Name(), Err: err}
	}
	return volume.Usage{
		Total: int64(st.Blocks) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize, Available: int64(st.Bavail) * st.Bsize, //nolint:gosec // sizes fit
		Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree), InodesAvail: int64(st.Ffree), //nolint:gosec // counts fit
	}, nil
}
