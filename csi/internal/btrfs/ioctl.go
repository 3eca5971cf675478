package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of linux/btrfs.h; all are _IO?(0x94, ...).
const (
	iocSnapCreate2   = 0x50009417
	iocSubvolCreate2 = 0x50009418
	iocDestroy2      = 0x5000943f
	iocSubvolFlags   = 0x4008941a // SETFLAGS
	iocQuotaCtl      = 0xc0109428
	iocGroupCreate   = 0x4010942a
	iocGroupLimit    = 0x8030942b
	iocTreeSearch    = 0xd0009411
	iocInoLookup     = 0xd0009412
	iocStartSync     = 0x80089418
	iocWaitSync      = 0x40089416
	iocFSInfo        = 0x8400941f

	enableSimple   = 4 // BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA, Linux 6.7
	flagReadOnly   = 1 << 1
	flagInherit    = 1 << 2
	flagByID       = 1 << 4
	limitReferrals = 1 << 0 // BTRFS_QGROUP_LIMIT_MAX_RFER
	rootInode      = 256    // of every subvolume
	rootTree       = 1
	rootRefKey     = 156
	unlimited      = -1 // takes a limit away
)

func ioctl(f *os.File, name string, cmd uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), cmd, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("%s on %s: %w", name, f.Name(), errno)
		}
		return nil
	}
}

// volArgs is struct btrfs_ioctl_vol_args_v2.
type volArgs struct {
	fd      int64
	transid uint64
	flags   uint64
	size    uint64
	inherit unsafe.Pointer
	_       [2]uint64
	name    [4040]byte
}

// inherit is struct btrfs_qgroup_inherit with one group.
type inherit struct {
	flags, groups, refCopies, exclCopies uint64
	limit                                [5]uint64
	group                                uint64
}

// groupID is the id of a level-1 group.
func groupID(number uint64) uint64 { return 1<<48 | number }

// makeSubvolume makes name in dir, empty or as a snapshot of source, a member of the volume's group from its birth.
func makeSubvolume(dir *os.File, name string, source *os.File, number uint64, readOnly bool) error {
	args := &volArgs{}
	copy(args.name[:len(args.name)-1], name)
	in := &inherit{groups: 1, group: groupID(number)}
	if number != 0 {
		args.flags |= flagInherit
		args.size, args.inherit = uint64(unsafe.Sizeof(*in)), unsafe.Pointer(in)
	}
	if readOnly {
		args.flags |= flagReadOnly
	}
	var err error
	if source == nil {
		err = ioctl(dir, "BTRFS_IOC_SUBVOL_CREATE_V2", iocSubvolCreate2, unsafe.Pointer(args))
	} else {
		args.fd = int64(source.Fd())
		err = ioctl(dir, "BTRFS_IOC_SNAP_CREATE_V2", iocSnapCreate2, unsafe.Pointer(args))
	}
	runtime.KeepAlive(in)
	return err
}

// destroy removes a subvolume by its id, wherever in the file system it is; it must have no subvolumes below it.
func destroy(anywhere *os.File, id uint64) error {
	args := &volArgs{flags: flagByID}
	binary.LittleEndian.PutUint64(args.name[:], id)
	return ioctl(anywhere, "BTRFS_IOC_SNAP_DESTROY_V2", iocDestroy2, unsafe.Pointer(args))
}

// writable clears what would keep a subvolume from being renamed or removed: its read-only property, and the inode
// flags (chattr +i, +a) of its root.
func writable(subvolume *os.File) error {
	var flags uint64
	if err := ioctl(subvolume, "BTRFS_IOC_SUBVOL_SETFLAGS", iocSubvolFlags, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	have, err := unix.IoctlGetInt(int(subvolume.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	const stuck = 0x10 | 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL
	if have&stuck == 0 {
		return nil
	}
	return unix.IoctlSetPointerInt(int(subvolume.Fd()), unix.FS_IOC_SETFLAGS, have&^stuck)
}

func enableQuota(f *os.File) error {
	args := [2]uint64{enableSimple, 0}
	return ioctl(f, "BTRFS_IOC_QUOTA_CTL", iocQuotaCtl, unsafe.Pointer(&args))
}

func createGroup(f *os.File, number uint64) error {
	args := [2]uint64{1, groupID(number)}
	err := ioctl(f, "BTRFS_IOC_QGROUP_CREATE", iocGroupCreate, unsafe.Pointer(&args))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// removeGroup removes a group that nothing is charged to any more; else it is EBUSY.
func removeGroup(f *os.File, number uint64) error {
	args := [2]uint64{0, groupID(number)}
	err := ioctl(f, "BTRFS_IOC_QGROUP_CREATE", iocGroupCreate, unsafe.Pointer(&args))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func limitGroup(f *os.File, number uint64, bytes int64) error {
	args := [6]uint64{groupID(number), limitReferrals, uint64(bytes)} //nolint:gosec // sizes fit
	return ioctl(f, "BTRFS_IOC_QGROUP_LIMIT", iocGroupLimit, unsafe.Pointer(&args))
}

// subvolumeID is the id of the subvolume that an open directory is in (BTRFS_IOC_INO_LOOKUP with tree 0).
func subvolumeID(f *os.File) (uint64, error) {
	args := &[4096]byte{}
	binary.LittleEndian.PutUint64(args[8:], rootInode)
	err := ioctl(f, "BTRFS_IOC_INO_LOOKUP", iocInoLookup, unsafe.Pointer(args))
	return binary.LittleEndian.Uint64(args[:]), err
}

// children are the ids of the subvolumes directly below one, from the root tree's ROOT_REF items.
func children(f *os.File, id uint64) ([]uint64, error) {
	var all []uint64
	for from := uint64(0); ; {
		args := &[4096]byte{}
		le := binary.LittleEndian
		for i, v := range []uint64{rootTree, id, id, from, ^uint64(0), 0, ^uint64(0)} {
			le.PutUint64(args[i*8:], v)
		}
		for i, v := range []uint32{rootRefKey, rootRefKey, 64, 0} {
			le.PutUint32(args[56+i*4:], v)
		}
		if err := ioctl(f, "BTRFS_IOC_TREE_SEARCH", iocTreeSearch, unsafe.Pointer(args)); err != nil {
			return nil, err
		}
		n, at := le.Uint32(args[64:]), 104
		if n == 0 {
			return all, nil
		}
		for range n { // struct btrfs_ioctl_search_header: transid, objectid, offset, type, len
			child := le.Uint64(args[at+16:])
			all = append(all, child)
			from = child + 1
			at += 32 + int(le.Uint32(args[at+28:]))
		}
	}
}

// commit makes all that was done so far outlive a power cut, without writing back more data than belongs to it.
func commit(f *os.File) error {
	var transid uint64
	if err := ioctl(f, "BTRFS_IOC_START_SYNC", iocStartSync, unsafe.Pointer(&transid)); err != nil {
		return err
	}
	return ioctl(f, "BTRFS_IOC_WAIT_SYNC", iocWaitSync, unsafe.Pointer(&transid))
}

// fsid is the file system's UUID, as sysfs writes it.
func fsid(f *os.File) (string, error) {
	var args [1024]byte
	if err := ioctl(f, "BTRFS_IOC_FS_INFO", iocFSInfo, unsafe.Pointer(&args)); err != nil {
		return "", err
	}
	u := args[16:32]
	if bytes.Count(u, []byte{0}) == 16 {
		return "", fmt.Errorf("%s: the file system has no UUID", f.Name())
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), nil
}
