package killpoint

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// shape is where a call's arguments say what it changes.
type shape struct {
	name     string
	dir, arg int  // of a path: the argument with its directory (-1: none) and that with its text
	fd       int  // of a file: the argument with its descriptor
	file     bool // fd counts, and only if it is a file's
}

// shapes are the calls that change something outside the process, by number.
func shapes() map[uint64]shape {
	at := func(name string, dir, arg int) shape { return shape{name: name, dir: dir, arg: arg, fd: -1} }
	on := func(name string) shape { return shape{name: name, dir: -1, arg: -1, file: true} }
	bare := func(name string) shape { return shape{name: name, dir: -1, arg: -1, fd: -1} }
	return map[uint64]shape{
		unix.SYS_OPENAT: at("openat", 0, 1), unix.SYS_OPENAT2: at("openat2", 0, 1), unix.SYS_OPEN: at("open", -1, 0), unix.SYS_CREAT: at("creat", -1, 0),
		unix.SYS_MKDIR: at("mkdir", -1, 0), unix.SYS_MKDIRAT: at("mkdirat", 0, 1), unix.SYS_RMDIR: at("rmdir", -1, 0),
		unix.SYS_UNLINK: at("unlink", -1, 0), unix.SYS_UNLINKAT: at("unlinkat", 0, 1), unix.SYS_RENAME: at("rename", -1, 1),
		unix.SYS_RENAMEAT: at("renameat", 2, 3), unix.SYS_RENAMEAT2: at("renameat2", 2, 3), unix.SYS_LINK: at("link", -1, 1),
		unix.SYS_LINKAT: at("linkat", 2, 3), unix.SYS_SYMLINK: at("symlink", -1, 1), unix.SYS_SYMLINKAT: at("symlinkat", 1, 2),
		unix.SYS_MKNODAT: at("mknodat", 0, 1), unix.SYS_FCHMODAT: at("fchmodat", 0, 1), unix.SYS_FCHOWNAT: at("fchownat", 0, 1),
		unix.SYS_CHMOD: at("chmod", -1, 0), unix.SYS_LCHOWN: at("lchown", -1, 0), unix.SYS_CHOWN: at("chown", -1, 0), unix.SYS_UTIMENSAT: at("utimensat", 0, 1),
		unix.SYS_MOUNT: at("mount", -1, 1), unix.SYS_UMOUNT2: at("umount2", -1, 0), unix.SYS_MOVE_MOUNT: at("move_mount", 2, 3),
		unix.SYS_SETXATTR: at("setxattr", -1, 0), unix.SYS_LSETXATTR: at("lsetxattr", -1, 0),
		unix.SYS_WRITE: on("write"), unix.SYS_PWRITE64: on("pwrite64"), unix.SYS_WRITEV: on("writev"), unix.SYS_FSYNC: on("fsync"),
		unix.SYS_FDATASYNC: on("fdatasync"), unix.SYS_SYNCFS: on("syncfs"), unix.SYS_FTRUNCATE: on("ftruncate"), unix.SYS_FCHMOD: on("fchmod"),
		unix.SYS_FCHOWN: on("fchown"), unix.SYS_SENDMSG: bare("sendmsg"), unix.SYS_SENDTO: bare("sendto"), unix.SYS_FSMOUNT: bare("fsmount"),
		unix.SYS_OPEN_TREE: bare("open_tree"), unix.SYS_MOUNT_SETATTR: bare("mount_setattr"), unix.SYS_CLONE: bare("clone"), unix.SYS_CLONE3: bare("clone3"),
		unix.SYS_VFORK: bare("vfork"), unix.SYS_FORK: bare("fork"), unix.SYS_SETNS: bare("setns"), unix.SYS_UNSHARE: bare("unshare"),
		unix.SYS_BIND: bare("bind"), unix.SYS_PIDFD_SEND_SIGNAL: bare("pidfd_send_signal"), unix.SYS_KILL: bare("kill"), unix.SYS_BPF: bare("bpf"),
	}
}

var byNumber = shapes()

// point names what the call is about to change, or is empty.
func (c call) point() string {
	s, ok := byNumber[c.nr]
	if !ok || !c.changes() {
		return ""
	}
	switch {
	case s.file:
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(c.args[0])))
		if err != nil || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "/dev/") || strings.Contains(to, "/logs/") {
			return "" // a socket, a pipe, the program's own log
		}
		return s.name + " " + normal(to)
	case s.arg >= 0:
		file := c.text(c.args[s.arg])
		if !path.IsAbs(file) && s.dir >= 0 {
			dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(c.args[s.dir])))
			file = path.Join(dir, file)
		}
		return s.name + " " + normal(file)
	}
	return s.name
}

// changes leaves out the calls that only look, and new threads.
func (c call) changes() bool {
	const creates = unix.O_CREAT | unix.O_TRUNC
	switch c.nr {
	case unix.SYS_OPENAT:
		return c.args[2]&creates != 0
	case unix.SYS_OPEN:
		return c.args[1]&creates != 0
	case unix.SYS_OPENAT2:
		return c.word(c.args[2])&creates != 0
	case unix.SYS_CLONE:
		return c.args[0]&unix.CLONE_THREAD == 0
	case unix.SYS_CLONE3:
		return c.word(c.args[0])&unix.CLONE_THREAD == 0
	case unix.SYS_KILL:
		return c.args[1] != 0
	}
	return true
}

func (c call) read(at uint64, b []byte) int {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := unix.ProcessVMReadv(c.pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil {
		return 0
	}
	return n
}

func (c call) word(at uint64) uint64 {
	var b [8]byte
	c.read(at, b[:])
	return binary.NativeEndian.Uint64(b[:])
}

// text is a string of the process's memory; it may end just before a page that is not there.
func (c call) text(at uint64) string {
	const page = 4096
	var out []byte
	for len(out) < page {
		b := make([]byte, page-at%page)
		n := c.read(at, b)
		if i := strings.IndexByte(string(b[:n]), 0); i >= 0 {
			return string(append(out, b[:i]...))
		}
		if n < len(b) {
			break
		}
		out, at = append(out, b...), at+uint64(n)
	}
	return string(out)
}

var (
	hexID  = regexp.MustCompile(`[0-9a-f]{64}`)
	hexish = regexp.MustCompile(`[0-9a-f]{8,}`)
	digits = regexp.MustCompile(`[0-9]+`)
)

// normal takes what differs from run to run out of a path.
func normal(file string) string {
	file = hexID.ReplaceAllString(file, "ID")
	file = hexish.ReplaceAllString(file, "X")
	return digits.ReplaceAllString(file, "N")
}

// skip lets a thread that enters a call make none, leave lets it have an error as the answer.
func skip(tid int) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	r.Orig_rax = ^uint64(0)
	return unix.PtraceSetRegs(tid, &r)
}

func leave(tid int, errno unix.Errno) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	r.Rax = -uint64(errno)
	return unix.PtraceSetRegs(tid, &r)
}
