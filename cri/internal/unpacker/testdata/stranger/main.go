// Command stranger is a child that has been taken over: it does what its first argument, where a layer's diffID
// should be, says. Tests run it in the place of the real one.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/unpacker"
)

func main() {
	if len(os.Args) < 3 {
		os.Exit(9)
	}
	say := func(s string) { fmt.Print(s); os.Exit(0) }
	switch what := os.Args[2]; what {
	case "hang":
		for {
			time.Sleep(time.Hour)
		}
	case "spin":
		for {
			runtime.Gosched()
		}
	case "silent":
	case "exit 3":
		os.Exit(3)
	case "fault":
		fmt.Fprintln(os.Stderr, "bad\x1b[2J thing\nhappened")
		var p *int
		*p = 1
	case "killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGABRT)
		panic("on purpose")
	case "lingers":
		_ = os.Stdout.Close()
		time.Sleep(time.Hour)
	case "complains":
		for {
			fmt.Fprintln(os.Stderr, strings.Repeat("x", 1000))
		}
	case "talks":
		for {
			_, _ = os.Stdout.WriteString(strings.Repeat("{", 1<<20))
		}
	case "nonsense":
		say("nonsense")
	case "both":
		say(`{"result":{},"failure":{"class":"not found","text":"x"}}`)
	case "neither":
		say(`{}`)
	case "early":
		say(`{"result":{"bytes":0,"inodes":0}}`)
	case "class":
		drain()
		say(`{"failure":{"class":"unauthenticated","text":"RegistryUnavailable: \u001b[31mred\nsecond line"}}`)
	case "escape":
		escape()
	default: // a result as it stands, when all is read
		drain()
		say(what)
	}
}

// drain reads the blob as package unpacker does: a length, then a credit back.
func drain() {
	credits := os.NewFile(5, "credits")
	var b [4]byte
	for {
		if _, err := io.ReadFull(os.Stdin, b[:]); err != nil {
			return
		}
		_, _ = credits.Write([]byte{0})
	}
}

// escape confines itself as the real child does and then tries everything; what worked, it says.
func escape() {
	var out bytes.Buffer
	if err := unpacker.Confine(layers.Limits{}); err != nil {
		fmt.Fprintln(&out, "confine:", err)
	}
	tried := 0
	try := func(what string, err error) {
		if tried++; err == nil {
			fmt.Fprintf(&out, "%s worked; ", what)
		}
	}
	for _, p := range []string{"/etc/passwd", "/proc/1/root/etc/passwd", "/proc/self/exe", "/dev/null", "/sys", "/tmp", "/..", "/new"} {
		_, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
		try("open "+p, err)
	}
	_, err := os.OpenFile("/unpacker", os.O_WRONLY, 0)
	try("writing its own program", err)
	try("removing its own program", os.Remove("/unpacker"))
	outside(try)
	var raw [64]byte
	_, _, e := unix.Syscall6(unix.SYS_OPEN_BY_HANDLE_AT, 3, uintptr(unsafe.Pointer(&raw)), 0, 0, 0, 0)
	try("open_by_handle_at", nonzero(e))
	try("mount", unix.Mount("proc", "/", "proc", 0, ""))
	try("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	try("setns", unix.Setns(3, 0))
	try("chroot", unix.Chroot("/"))
	_, err = net.Dial("unix", "/run/x")
	try("a socket", err)
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	try("an inet socket", err)
	_, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	try("a pair of sockets", err)
	try("exec", exec.Command("/unpacker").Run())
	try("execve", unix.Exec("/unpacker", nil, nil))
	try("kill", unix.Kill(-1, 0))
	try("ptrace", unix.PtraceAttach(1))
	try("setuid", unix.Setuid(0))
	try("sethostname", unix.Sethostname([]byte("x")))
	try("bpf and perf", perf())
	try("keyctl", keyctl())
	_, err = unix.MemfdCreate("x", 0)
	try("memfd_create", err)
	_, err = unix.Mmap(4, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	try("mapping the blob for writing", err)
	try("cutting the blob off", unix.Ftruncate(4, 0))
	try("raising a limit", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}))
	try("trusted attribute", unix.Fsetxattr(3, "trusted.overlay.opaque", []byte("y"), 0))
	for i := 6; i < 1024; i++ {
		if _, err := unix.FcntlInt(uintptr(i), unix.F_GETFD, 0); err == nil && !runtimeOwn(i) {
			try(fmt.Sprintf("descriptor %d", i), nil)
		}
	}
	fmt.Printf(`{"failure":{"class":"internal","text":"tried %d: [%s]"}}`, tried, strings.ReplaceAll(out.String(), `"`, "'"))
	os.Exit(0)
}

// outside tries to leave the layer by its descriptor.
func outside(try func(string, error)) {
	var here, up unix.Stat_t
	_ = unix.Fstatat(3, ".", &here, 0)
	if err := unix.Fstatat(3, "../../../..", &up, 0); err == nil && up.Ino != here.Ino {
		try("dot dot", nil)
	}
	_, err := unix.Openat(3, "../layer", unix.O_RDWR, 0)
	try("what is beside the layer", err)
	_, err = unix.Openat(3, "/etc/passwd", unix.O_RDONLY, 0)
	try("an absolute path", err)
	try("a hard link to its program", unix.Linkat(unix.AT_FDCWD, "/unpacker", 3, "h", 0))
	if err := unix.Symlinkat("../../../../etc", 3, "l"); err == nil {
		_, err = unix.Openat(3, "l/passwd", unix.O_RDONLY, 0)
		try("a link up", err)
	}
	if err := unix.Mknodat(3, "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err == nil {
		_, err = unix.Openat(3, "null", unix.O_RDWR, 0)
		try("opening a device that it made", err)
	}
	if err := unix.Mknodat(3, "kmsg", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))); err == nil {
		_, err = unix.Openat(3, "kmsg", unix.O_RDONLY, 0)
		try("opening another", err)
	}
}

func perf() error {
	_, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0)
	_, _, e2 := unix.Syscall(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0)
	if e == unix.EPERM && e2 == unix.EPERM {
		return e
	}
	return nil
}

func keyctl() error {
	if _, err := unix.KeyctlInt(0, 0, 0, 0, 0); err == unix.EPERM {
		return err
	}
	return nil
}

func nonzero(e syscall.Errno) error {
	if e == unix.EPERM {
		return e
	}
	return nil
}

// runtimeOwn are descriptors of Go's poller.
func runtimeOwn(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	var st unix.Stat_t
	return err == nil && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == 0
}
