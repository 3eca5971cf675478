package plan

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions below make single steps. Arguments that may be a parent's descriptor or a slot are Args.

// I is an immediate argument.
func I[T ~int | ~int64 | ~uint64 | ~uint32 | ~uintptr | ~int32](n T) Arg {
	return Arg{Kind: Imm, N: uint64(n)} //nolint:gosec // two's complement is meant
}

// F is a descriptor of the parent; name is how it is printed.
func F(fd int, name string) Arg { return Arg{Kind: Fd, N: uint64(fd), S: name} } //nolint:gosec // fds are positive

// R is the result of an earlier step.
func R(s Slot) Arg { return Arg{Kind: Res, N: uint64(s)} } //nolint:gosec // slots are positive

// S is a string.
func S(s string) Arg { return Arg{Kind: Str, S: s} }

// B is a buffer.
func B(b []byte) Arg { return Arg{Kind: Bytes, S: string(b)} }

// Strings is an argument or environment vector.
func Strings(v []string) Arg { return Arg{Kind: Vec, V: &v} }

// Call is any system call.
func Call(what string, nr uintptr, args ...Arg) Step { return Step{Nr: nr, Args: args, What: what} }

// Passing returns s with errnos that are not failures.
func (s Step) Passing(e ...syscall.Errno) Step {
	s.Pass = e
	return s
}

// Noting returns s with errnos that are reported but not failures.
func (s Step) Noting(e ...syscall.Errno) Step {
	s.Note = e
	return s
}

// Into returns s with its result saved in slot.
func (s Step) Into(slot Slot) Step {
	s.Save = slot
	return s
}

// Returning returns s with the result it must have.
func (s Step) Returning(n int64) Step {
	s.Want, s.Check = n, true
	return s
}

// Openat2 opens path below dir. mode is used with O_CREAT only.
func Openat2(what string, dir Arg, path string, flags int, mode uint32, resolve uint64) Step {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve} //nolint:gosec // small
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&how)), unsafe.Sizeof(how))
	return Call(what, unix.SYS_OPENAT2, dir, S(path), B(append([]byte(nil), b...)), I(len(b)))
}

// Close closes a descriptor.
func Close(fd Arg) Step { return Call("close", unix.SYS_CLOSE, fd) }

// Write writes all of data.
func Write(what string, fd Arg, data string) Step {
	return Call(what, unix.SYS_WRITE, fd, B([]byte(data)), I(len(data))).Returning(int64(len(data)))
}

// Prctl is prctl(2).
func Prctl(what string, op int, args ...Arg) Step {
	a := [4]Arg{}
	copy(a[:], args)
	return Call(what, unix.SYS_PRCTL, append([]Arg{I(op)}, a[:]...)...)
}

// UnblockSignals lets every signal through: the runtime blocks them all around a clone.
func UnblockSignals() Step {
	return Call("unblock signals", unix.SYS_RT_SIGPROCMASK, I(unix.SIG_SETMASK), B(make([]byte, 8)), I(0), I(8))
}

// Barrier waits until the parent releases the child once; the parent's death is a failure.
func Barrier(what string) Step {
	return Call(what, unix.SYS_READ, Arg{Kind: Own}, B(make([]byte, 1)), I(1)).Returning(1)
}

// Fsopen makes a file system context.
func Fsopen(what, fstype string) Step {
	return Call(what, unix.SYS_FSOPEN, S(fstype), I(unix.FSOPEN_CLOEXEC))
}

// FsString sets a parameter of a file system context; an empty value sets a flag.
func FsString(what string, fs Arg, key, value string, flag bool) Step {
	if flag {
		return Call(what, unix.SYS_FSCONFIG, fs, I(unix.FSCONFIG_SET_FLAG), S(key), I(0), I(0))
	}
	return Call(what, unix.SYS_FSCONFIG, fs, I(unix.FSCONFIG_SET_STRING), S(key), S(value), I(0))
}

// FsCreate makes the superblock of a context.
func FsCreate(what string, fs Arg) Step {
	return Call(what, unix.SYS_FSCONFIG, fs, I(unix.FSCONFIG_CMD_CREATE), I(0), I(0), I(0))
}

// Fsmount makes a detached mount of a context, with MOUNT_ATTR_* flags.
func Fsmount(what string, fs Arg, attr int) Step {
	return Call(what, unix.SYS_FSMOUNT, fs, I(unix.FSMOUNT_CLOEXEC), I(attr))
}

// MoveMount attaches the detached mount from on the object that to (O_PATH) is.
func MoveMount(what string, from, to Arg) Step {
	return Call(what, unix.SYS_MOVE_MOUNT, from, S(""), to, S(""),
		I(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// MountSetattr changes the mount that fd is the root of.
func MountSetattr(what string, fd Arg, recursive bool, attr unix.MountAttr) Step {
	flags := unix.AT_EMPTY_PATH
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	b := make([]byte, 0, 32)
	for _, v := range [...]uint64{attr.Attr_set, attr.Attr_clr, attr.Propagation, attr.Userns_fd} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return Call(what, unix.SYS_MOUNT_SETATTR, fd, S(""), I(flags), B(b), I(len(b)))
}

// Execve replaces the process.
func Execve(path string, argv, env []string) Step {
	return Call("exec "+path, unix.SYS_EXECVE, S(path), Strings(argv), Strings(env))
}
