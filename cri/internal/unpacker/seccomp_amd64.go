package unpacker

import "golang.org/x/sys/unix"

// auditArch is AUDIT_ARCH_X86_64. The x32 numbers share it, and are in no list.
const auditArch = unix.AUDIT_ARCH_X86_64

// archCalls are the older forms of calls that Go makes here.
func archCalls() []uintptr {
	return []uintptr{unix.SYS_EPOLL_WAIT, unix.SYS_ARCH_PRCTL, unix.SYS_NEWFSTATAT, unix.SYS_GETRLIMIT, unix.SYS_PIPE2}
}
