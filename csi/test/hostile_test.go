package test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// containerCaps are the capabilities that a container of uid 0 has by default.
const containerCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD |
	1<<unix.CAP_NET_RAW | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE

// tenant is what this program does when it is started as a tenant of the volume in args[0]: it prints what it achieved.
func tenant(role string, args []string) int {
	runtime.LockOSThread() // capabilities are a thread's
	if os.Geteuid() == 0 {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: containerCaps & 0xffffffff, Permitted: containerCaps & 0xffffffff}}
		if err := unix.Capset(&header, &data[0]); err != nil {
			fmt.Println("capset:", err)
			return 1
		}
	}
	n, err := escape(role, args[0])
	fmt.Println(n, err)
	return 0
}

func escape(role, dir string) (int64, error) {
	switch role {
	case "fill":
		return pour(dir)
	case "nested":
		f, err := os.Open(dir)
		if err != nil {
			return 0, err
		}
		for i := range 3 {
			args := &[4096]byte{}
			copy(args[8:], fmt.Sprintf("sub%d", i))
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x5000940e, uintptr(unsafe.Pointer(args))); errno != 0 {
				return pour(dir)
			}
		}
		var sum int64
		for i := range 3 {
			n, perr := pour(fmt.Sprintf("%s/sub%d", dir, i))
			sum, err = sum+n, perr
		}
		return sum, err
	case "project":
		attr := [28]byte{} // struct fsxattr: xflags, extsize, nextents, projid, ...
		f, err := os.Open(dir)
		if err != nil {
			return 0, err
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x401c5820, uintptr(unsafe.Pointer(&attr)))
		return pour(dir)
	case "stuck":
		return 0, errors.Join(flag(dir, 0x10), flag(dir, 0x20), readOnly(dir))
	case "device":
		path := dir + "/disk"
		err := unix.Mknod(path, unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0)))
		if err == nil {
			_, err = os.Open(path)
		}
		return 0, err
	case "euid":
		return int64(os.Geteuid()), nil
	}
	return 0, errors.New("unknown role " + role)
}

// pour writes until it is stopped, and keeps what it wrote.
func pour(dir string) (int64, error) {
	f, err := os.OpenFile(filepath.Join(dir, "poured"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	chunk := make([]byte, mib)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	var n int64
	for n < 400*mib {
		w, err := f.Write(chunk)
		n += int64(w)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return n, errors.Join(err, f.Close())
		}
	}
	return n, f.Close()
}

func flag(dir string, bit int) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, bit), f.Close())
}

func readOnly(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	flags := uint64(2)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x4008941a, uintptr(unsafe.Pointer(&flags)))
	if errno != 0 {
		return errors.Join(errno, f.Close())
	}
	return f.Close()
}

// as runs this program as a tenant and returns what it achieved.
func as(t *testing.T, uid uint32, role, program, dir string) (int64, string) {
	t.Helper()
	return run(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}, role, program, dir)
}

// asConfined is as in a user namespace of the tenant's own (hostUsers: false), whose ids are nobody's outside.
func asConfined(t *testing.T, uid uint32, role, program, dir string) (int64, string) {
	t.Helper()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200_000, Size: 65_536}}
	return run(t, &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
	}, role, program, dir)
}

func run(t *testing.T, attr *syscall.SysProcAttr, role, program, dir string) (int64, string) {
	t.Helper()
	cmd := exec.Command(program, dir)
	cmd.Env = append(os.Environ(), "BERTH_CSI_TENANT="+role)
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tenant %s: %v: %s", role, err, out)
	}
	n, rest, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	got, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		t.Fatalf("tenant %s says %q", role, out)
	}
	return got, rest
}

// open lets a tenant of any uid reach the volume and this program.
func hostile(t *testing.T, l *lab, id string) (dir, self string) {
	t.Helper()
	dir = l.up(id, mounted(""))
	l.ok(os.Chmod(dir, 0o777))
	for _, d := range []string{l.dir, l.dir + "/kubelet"} {
		l.ok(os.Chmod(d, 0o711))
	}
	self = l.dir + "/tenant"
	copyFile(t, "/proc/self/exe", self)
	l.ok(os.Chmod(self, 0o755))
	return dir, self
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close() //nolint:errcheck // read only
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestHostile: a tenant with uid 1000 and no capability, and one with uid 0 and a container's, try to write past their
// volume's limit, by whatever the file system offers, and to make their volume impossible to delete.
func TestHostile(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		for _, uid := range []uint32{1000, 0} {
			for _, role := range []string{"fill", "nested", "project"} {
				t.Run(fmt.Sprintf("%s-%d", role, uid), func(t *testing.T) {
					l := newLab(t, k, 900*mib, "")
					id, other := l.must("v", 48*mib, mounted("")), l.must("other", 48*mib, mounted(""))
					dir, self := hostile(t, l, id)
					tenant := as
					if k.backend == "dir" && role == "project" { // what a project's limit cannot hold, a user namespace does
						tenant = asConfined
					}
					if n, why := tenant(t, uid, role, self, dir); n > 48*mib || n < 30*mib {
						t.Errorf("%s wrote %d bytes into 48 MiB: %s", role, n, why)
					}
					if err := write(l.up(other, mounted(""))+"/file", make([]byte, 20*mib)); err != nil {
						t.Errorf("the neighbour: %v", err)
					}
					_, why := as(t, uid, "stuck", self, dir)
					t.Logf("chattr +i, +a, read-only: %s", why)
					l.down(id)
					l.down(other)
					l.ok(l.remove(id))
					l.ok(l.remove(other))
					l.empty()
				})
			}
		}
	})
}

// TestStuckRoot: a root of the machine's own has made the volume's root immutable; it is deleted all the same.
func TestStuckRoot(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		id := l.must("v", 32*mib, mounted(""))
		dir := l.up(id, mounted(""))
		l.ok(write(dir+"/file", []byte("kept for ever?")))
		l.ok(flag(dir, 0x10))
		l.down(id)
		l.ok(l.remove(id))
		l.empty()
	})
}

// TestNoDevicesNoSetuid: a device node in a volume opens nothing, and a set-uid program in it runs as its caller.
func TestNoDevicesNoSetuid(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		id := l.must("v", 64*mib, mounted(""))
		dir, self := hostile(t, l, id)
		if _, why := as(t, 0, "device", self, dir); !strings.Contains(why, "permission denied") && !strings.Contains(why, "not permitted") {
			t.Errorf("opening a device node made in the volume: %s", why)
		}
		inside := dir + "/setuid"
		copyFile(t, self, inside)
		l.ok(os.Chmod(inside, 0o755|os.ModeSetuid))
		if n, why := as(t, 1000, "euid", inside, dir); n != 1000 {
			t.Errorf("a set-uid program in the volume runs as %d, %s", n, why)
		}
		l.down(id)
		l.ok(l.remove(id))
		l.empty()
	})
}

// TestNoOldBytes: a new volume never shows what a deleted one held, raw blocks included.
func TestNoOldBytes(t *testing.T) {
	all := []kind{kinds()[0], {"loop-ext4", "loop", "ext4"}}
	if os.Getenv(lvmHere) != "" {
		all = kinds()
	}
	for _, k := range all {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 400*mib, "")
			secret := []byte(strings.Repeat("SECRET--", 512))
			old := l.must("old", 100*mib, block())
			dev := l.up(old, block())
			f, err := os.OpenFile(dev, os.O_WRONLY, 0)
			l.ok(err)
			for at := int64(0); at < 100*mib; at += int64(len(secret)) {
				_, err = f.WriteAt(secret, at)
				l.ok(err)
			}
			l.ok(errors.Join(f.Sync(), f.Close()))
			l.down(old)
			l.ok(l.remove(old))
			l.empty()
			id := l.must("new", 300*mib, block())
			b, err := os.ReadFile(l.up(id, block()))
			if err != nil || strings.Contains(string(b), "SECRET") {
				t.Errorf("old bytes are in the new volume, or %v", err)
			}
			l.down(id)
			l.ok(l.remove(id))
			l.empty()
		})
	}
}

// TestModes: one writer alone is one target; a read-only target cannot be written; another use of what is staged is
// refused; a group gets the root once.
func TestModes(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		id := l.must("v", 32*mib, mounted(""))
		one := mounted("")
		one.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		one.GetMount().VolumeMountGroup = "4711"
		l.ok(l.stage(id, one))
		code(t, l.stage(id, mounted("")), 6, "staged at")
		l.ok(l.publish(id, "", one, true))
		code(t, l.publish(id, "", one, false), 6, "readonly=true")
		code(t, l.publish(id, "-2", one, false), 9, "one target only")
		if err := os.WriteFile(l.target(id, "")+"/file", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing to a read-only target: %v", err)
		}
		if fi, err := os.Stat(l.target(id, "")); err != nil || fi.Sys().(*syscall.Stat_t).Gid != 4711 || fi.Mode()&os.ModeSetgid == 0 {
			t.Errorf("the root is %v, %v", fi.Mode(), err)
		}
		l.down(id)
		l.ok(l.remove(id))
		l.empty()
	})
}
