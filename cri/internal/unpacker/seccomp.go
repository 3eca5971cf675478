package unpacker

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls are all system calls that a child may make, for the whole life of its threads.
func calls() []uintptr {
	runtimes := []uintptr{ // what Go itself needs
		unix.SYS_BRK, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_FUTEX,
		unix.SYS_GETPID, unix.SYS_GETRANDOM, unix.SYS_GETTID, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MMAP,
		unix.SYS_MUNMAP, unix.SYS_NANOSLEEP, unix.SYS_RESTART_SYSCALL, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK,
		unix.SYS_RT_SIGRETURN, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_YIELD, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_FCNTL,
		unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_GETRUSAGE,
	}
	files := []uintptr{ // what package layers does
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_LSEEK, unix.SYS_FSTAT, unix.SYS_GETDENTS64,
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT,
		unix.SYS_UNLINKAT, unix.SYS_READLINKAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_FCHMOD, unix.SYS_FCHMODAT,
		unix.SYS_FCHMODAT2, unix.SYS_FSETXATTR, unix.SYS_UTIMENSAT,
	}
	return append(append(runtimes, files...), archCalls()...)
}

// filter puts every thread, now and later, under a seccomp filter: calls are allowed, and clone for threads; anything
// else, and any other way of calling, is EPERM. It takes no_new_privs.
func filter() error {
	allow := calls()
	clone := len(allow)
	const (
		number, arch, argument0 = 0, 4, 16 // struct seccomp_data; little endian
		load                    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal                   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		anySet                  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret                     = unix.BPF_RET | unix.BPF_K
	)
	deny, pass := unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM), uint32(unix.SECCOMP_RET_ALLOW)
	prog := []unix.SockFilter{
		{Code: load, K: arch},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: ret, K: deny},
		{Code: load, K: number},
	}
	for i, nr := range allow {
		prog = append(prog, unix.SockFilter{Code: equal, K: uint32(nr), Jt: uint8(clone - i + 3)}) //nolint:gosec // below 100 of them
	}
	prog = append(prog,
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE, Jf: 2},
		unix.SockFilter{Code: load, K: argument0},
		unix.SockFilter{Code: anySet, K: unix.CLONE_THREAD, Jt: 1},
		unix.SockFilter{Code: ret, K: deny},
		unix.SockFilter{Code: ret, K: pass},
	)
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]} //nolint:gosec // about 100
	const setModeFilter, tsync = 1, 1
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, tsync, uintptr(unsafe.Pointer(&p))) //nolint:gosec // seccomp(2)
	runtime.KeepAlive(prog)
	if e != 0 {
		return os.NewSyscallError("seccomp", e)
	}
	return nil
}
