package unpacker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// program is the only file in a child's root.
const program = "unpacker"

// enclose moves the calling thread, which must be locked and never be let go, into namespaces of its own whose root
// holds nothing but the program at path, and takes from it what children must not have. Children of this thread start
// with all that. The thread keeps CAP_SYS_ADMIN, for it makes their pid namespaces; exec takes it from them.
func enclose(path string) error {
	exe, copied, err := executable(path)
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	defer exe.Close() //nolint:errcheck // O_PATH, or read only
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	root, err := emptyRoot(copied)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing written
	if copied > 0 {
		if err := fill(root, exe, copied); err != nil {
			return fmt.Errorf("program: %w", err)
		}
		exe = nil
	}
	if err := changeRoot(root, exe); err != nil {
		return err
	}
	return dropPrivileges()
}

// executable opens the program as a detached mount. One that was deleted, as an upgrade does under a running daemon,
// cannot be mounted (ENOENT): then it is open for reading, and size is how much is to be copied.
func executable(path string) (f *os.File, size int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, 0, os.NewSyscallError("stat", err)
	}
	if st.Nlink == 0 {
		f, err = os.Open(path) //nolint:gosec // this program, or a test's
		return f, st.Size, err
	}
	f, err = detached(unix.AT_FDCWD, path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	return f, 0, err
}

// fill copies the program into the new root. Nothing may fork meanwhile: a child would keep it open for writing, and
// what is open for writing cannot be executed.
func fill(root, exe *os.File, size int64) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Openat(int(root.Fd()), program, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	to := os.NewFile(uintptr(fd), program)
	n, err := io.Copy(to, exe)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, to.Close())
}

// detached clones the mount of a file or directory into one that is nowhere, with the given MOUNT_ATTR_*. Its root
// has nothing above it. Linux 5.12.
func detached(dir int, path string, attributes uint64) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	f := os.NewFile(uintptr(fd), "detached mount")
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attributes}); err != nil {
		_ = f.Close() //nolint:errcheck // O_PATH
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return f, nil
}

// emptyRoot makes a file system with one empty file, the place for the program, and room for size bytes in it.
func emptyRoot(size int64) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs) //nolint:errcheck // a context
	for key, value := range map[string]string{"mode": "0555", "size": strconv.FormatInt(size+64<<10, 10), "nr_inodes": "8"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	root := os.NewFile(uintptr(fd), "root")
	at, err := unix.Openat(fd, program, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o555)
	if err == nil {
		err = unix.Close(at)
	}
	if err != nil {
		_ = root.Close() //nolint:errcheck // on the way out
		return nil, os.NewSyscallError("openat", err)
	}
	return root, nil
}

// changeRoot makes root the thread's, with exe in it unless it is nil, and lets everything else go.
func changeRoot(root, exe *os.File) error {
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if exe != nil {
		if err := unix.MoveMount(int(exe.Fd()), "", unix.AT_FDCWD, program, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return os.NewSyscallError("move_mount", err)
		}
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, which lies above the new one
		return os.NewSyscallError("umount2", err)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// dropPrivileges empties the thread's ambient and inheritable sets and bounds what a child can have to Capabilities;
// no file that it could execute gives more.
func dropPrivileges() error {
	keep := map[uintptr]bool{}
	for _, c := range Capabilities() {
		keep[c] = true
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT", err)
	}
	for c := uintptr(0); c < 64; c++ {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // beyond the kernel's last
		} else if has == 0 || keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}
