package dir

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The project quota of a file system: linux/quota.h and linux/fs.h.
const (
	getQuota     = 0x800007<<8 | projectQuota // QCMD(Q_GETQUOTA, PRJQUOTA)
	setQuota     = 0x800008<<8 | projectQuota
	projectQuota = 2
	blockLimits  = 1    // QIF_BLIMITS
	quotaBlock   = 1024 // the unit of a limit, in bytes (QIF_DQBLKSIZE)

	inherit = 0x200 // FS_XFLAG_PROJINHERIT
	fsGetX  = 0x801c581f
	fsSetX  = 0x401c5820

	// ours is the first project of a range that nobody else is known to use: the kubelet's begin at 1048577 (2^20+1).
	ours  = 1 << 30
	probe = ours<<1 - 1 // the project of the proof, which no volume has
)

// project is the project of a volume: its number, in our range. 2^30 volumes later a number comes again; then its
// project is looked at before it is used.
func project(number uint64) uint32 { return uint32(ours | number%(ours-1)) } //nolint:gosec // below 2^31

// dqblk is struct if_dqblk: limits in quota blocks, space in bytes.
type dqblk struct {
	hardBlocks, softBlocks, space  uint64
	hardInodes, softInodes, inodes uint64
	blockTime, inodeTime           uint64
	valid                          uint32
	_                              uint32
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

func quotactl(f *os.File, name string, cmd uintptr, id uint32, q *dqblk) error { // Linux 5.14
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), cmd, uintptr(id), uintptr(unsafe.Pointer(q)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("%s of project %d on %s: %w", name, id, f.Name(), errno)
	}
	return nil
}

// limit sets what a project may take, in bytes; 0: all.
func limit(f *os.File, id uint32, bytes int64) error {
	blocks := uint64((bytes + quotaBlock - 1) / quotaBlock) //nolint:gosec // sizes fit
	return quotactl(f, "Q_SETQUOTA", setQuota, id, &dqblk{hardBlocks: blocks, softBlocks: blocks, valid: blockLimits})
}

// charged is what a project takes, in bytes and inodes. One that nobody ever had takes nothing.
func charged(f *os.File, id uint32) (bytes, inodes int64, err error) {
	q := &dqblk{}
	err = quotactl(f, "Q_GETQUOTA", getQuota, id, q)
	if errors.Is(err, unix.ENOENT) {
		return 0, 0, nil
	}
	return int64(q.space), int64(q.inodes), err //nolint:gosec // sizes fit
}

// assign makes an empty directory a project's, and all that will be made in it.
func assign(directory *os.File, id uint32) error {
	x := &fsxattr{}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, directory.Fd(), fsGetX, uintptr(unsafe.Pointer(x))); errno != 0 {
		return fmt.Errorf("FS_IOC_FSGETXATTR: %w", errno)
	}
	x.flags |= inherit
	x.project = id
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, directory.Fd(), fsSetX, uintptr(unsafe.Pointer(x))); errno != 0 {
		return fmt.Errorf("FS_IOC_FSSETXATTR: %w", errno)
	}
	return nil
}

// asTenant runs do without CAP_SYS_RESOURCE, which ext4 lets write beyond a limit.
func asTenant(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var was [2]unix.CapUserData
	if err := unix.Capget(head, &was[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	less := was
	less[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(head, &less[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	err := do()
	if rerr := unix.Capset(head, &was[0]); rerr != nil {
		return errors.Join(err, fmt.Errorf("capset: %w", rerr))
	}
	return err
}
