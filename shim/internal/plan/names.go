package plan

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func errnos(list []syscall.Errno) string {
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = unix.ErrnoName(e)
	}
	return strings.Join(names, "|")
}

// name is the name of a system call that plans use.
func name(nr uintptr) string {
	switch nr {
	case NrClone:
		return "CLONE"
	case NrExit:
		return "EXIT"
	case NrSendConsole:
		return "SENDCONSOLE"
	case NrNop:
		return "NOP"
	case NrFail:
		return "FAIL"
	}
	for _, c := range calls() {
		if c.nr == nr {
			return c.name
		}
	}
	return fmt.Sprintf("syscall_%d", nr)
}

type call struct {
	nr   uintptr
	name string
}

// calls are the system calls that plans use.
func calls() []call {
	return []call{
		{unix.SYS_CAPSET, "capset"},
		{unix.SYS_CLOSE, "close"},
		{unix.SYS_CLOSE_RANGE, "close_range"},
		{unix.SYS_DUP3, "dup3"},
		{unix.SYS_EXECVE, "execve"},
		{unix.SYS_EXECVEAT, "execveat"},
		{unix.SYS_FCNTL, "fcntl"},
		{unix.SYS_FCHDIR, "fchdir"},
		{unix.SYS_FCHMOD, "fchmod"},
		{unix.SYS_FCHMODAT, "fchmodat"},
		{unix.SYS_FCHOWN, "fchown"},
		{unix.SYS_FCHOWNAT, "fchownat"},
		{unix.SYS_FSCONFIG, "fsconfig"},
		{unix.SYS_FSMOUNT, "fsmount"},
		{unix.SYS_FSOPEN, "fsopen"},
		{unix.SYS_IOCTL, "ioctl"},
		{unix.SYS_IOPRIO_SET, "ioprio_set"},
		{unix.SYS_KEYCTL, "keyctl"},
		{unix.SYS_MKDIRAT, "mkdirat"},
		{unix.SYS_MKNODAT, "mknodat"},
		{unix.SYS_MOUNT_SETATTR, "mount_setattr"},
		{unix.SYS_MOVE_MOUNT, "move_mount"},
		{unix.SYS_OPENAT, "openat"},
		{unix.SYS_OPENAT2, "openat2"},
		{unix.SYS_OPEN_TREE, "open_tree"},
		{unix.SYS_PERSONALITY, "personality"},
		{unix.SYS_PIVOT_ROOT, "pivot_root"},
		{unix.SYS_PRCTL, "prctl"},
		{unix.SYS_PRLIMIT64, "prlimit64"},
		{unix.SYS_READ, "read"},
		{unix.SYS_RT_SIGACTION, "rt_sigaction"},
		{unix.SYS_RT_SIGPROCMASK, "rt_sigprocmask"},
		{unix.SYS_SCHED_SETATTR, "sched_setattr"},
		{unix.SYS_SECCOMP, "seccomp"},
		{unix.SYS_SENDMSG, "sendmsg"},
		{unix.SYS_SETDOMAINNAME, "setdomainname"},
		{unix.SYS_SETGROUPS, "setgroups"},
		{unix.SYS_SETHOSTNAME, "sethostname"},
		{unix.SYS_SETNS, "setns"},
		{unix.SYS_SETRESGID, "setresgid"},
		{unix.SYS_SETRESUID, "setresuid"},
		{unix.SYS_SETSID, "setsid"},
		{unix.SYS_SOCKET, "socket"},
		{unix.SYS_SYMLINKAT, "symlinkat"},
		{unix.SYS_UMASK, "umask"},
		{unix.SYS_UMOUNT2, "umount2"},
		{unix.SYS_UNLINKAT, "unlinkat"},
		{unix.SYS_UNSHARE, "unshare"},
		{unix.SYS_WRITE, "write"},
		{unix.SYS_CHDIR, "chdir"},
	}
}
