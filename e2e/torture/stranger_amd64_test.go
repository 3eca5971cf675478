package torture

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args (linux/sched.h, 88 bytes: with set_tid, Linux 5.5).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// stranger starts a process with a given pid, which must be free, and every signal blocked: what is sent to it stays pending
// and can be seen. It sleeps for good.
func stranger(pid int) error {
	path := []byte("/bin/busybox\x00")
	name, arg := []byte("sleep\x00"), []byte("100000\x00")
	argv := []*byte{&name[0], &arg[0], nil}
	envp := []*byte{nil}
	want := int32(pid) //nolint:gosec // a pid
	args := cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTID: uint64(uintptr(unsafe.Pointer(&want))), setTIDSize: 1}
	all, old := ^uint64(0), uint64(0)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const setMask = 2
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0); errno != 0 {
		return errno
	}
	errno := spawn(&args, &path[0], &argv[0], &envp[0])
	_, _, merrno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envp)
	runtime.KeepAlive(&want)
	if errno != 0 {
		return fmt.Errorf("process %d: %w", pid, errno)
	}
	if merrno != 0 {
		return merrno
	}
	return nil
}

// spawn is fork and exec in one, with a copy of the memory; nothing of Go's runtime may run in the child.
//
//go:nosplit
//go:norace
func spawn(args *cloneArgs, path *byte, argv, envp **byte) unix.Errno {
	r, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno == 0 && r == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envp)))
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
		}
	}
	return errno
}

// harmed says what was done to a stranger.
func harmed(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 1 && (f[0] == "ShdPnd:" || f[0] == "SigPnd:") && strings.Trim(f[1], "0") != "" || len(f) > 1 && f[0] == "State:" && f[1] == "Z" {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// dismiss ends a stranger.
func dismiss(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	_, err := unix.Wait4(pid, nil, 0, nil)
	return err
}
