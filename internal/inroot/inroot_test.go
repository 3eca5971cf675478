package inroot_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

func root(t *testing.T) (*inroot.Root, string) {
	t.Helper()
	outer := t.TempDir()
	dir := filepath.Join(outer, "root")
	for _, err := range []error{
		os.Mkdir(dir, 0o755),
		os.Mkdir(filepath.Join(dir, "etc"), 0o755),
		os.WriteFile(filepath.Join(outer, "secret"), []byte("outside"), 0o600),
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("inside"), 0o644),
		os.Symlink("../../../../secret", filepath.Join(dir, "up")),
		os.Symlink("/etc/passwd", filepath.Join(dir, "abs")),
		os.Symlink(filepath.Join(outer, "secret"), filepath.Join(dir, "host")),
		os.Symlink("/proc/self/root", filepath.Join(dir, "magic")),
		os.Symlink("/nowhere", filepath.Join(dir, "dangling")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, dir
}

func TestLinksEndInside(t *testing.T) {
	r, _ := root(t)
	for name, want := range map[string]string{"abs": "inside", "/etc/../../../etc/passwd": "inside"} {
		b, err := r.ReadFile(name, 100)
		if err != nil || string(b) != want {
			t.Errorf("ReadFile(%q) = %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"up", "host", "magic/etc/passwd", "nul\x00byte"} {
		if b, err := r.ReadFile(name, 100); err == nil {
			t.Errorf("ReadFile(%q) = %q, want an error", name, b)
		}
	}
	if _, err := r.Beneath("abs", unix.O_RDONLY, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Beneath through a link: %v, want ELOOP", err)
	}
}

func TestReadFileBounds(t *testing.T) {
	r, dir := root(t)
	if _, err := r.ReadFile("etc/passwd", 3); err == nil {
		t.Error("a file over the limit was read")
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := r.ReadFile("fifo", 100); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a fifo was read: %q, %v", b, err)
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if b, err := r.ReadFile("null", 100); err == nil { // an empty file is what it would pass for
		t.Errorf("a device was read: %q", b)
	}
}

func TestMkdirAll(t *testing.T) {
	r, dir := root(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	f, err := r.MkdirAll("a/b/c", 0o751)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	fi, err := os.Stat(filepath.Join(dir, "a/b/c"))
	if err != nil || fi.Mode().Perm() != 0o751 {
		t.Errorf("mode %v, %v", fi, err)
	}
	if _, err := r.MkdirAll("dangling/x", 0o755); err == nil {
		t.Error("made a directory through a dangling link")
	}
	if _, _, err := r.Parent("/"); err == nil {
		t.Error("the root has a parent")
	}
}

// TestClosedOnExec: no descriptor of a container's files reaches a program that the opener starts.
func TestClosedOnExec(t *testing.T) {
	r, _ := root(t)
	f, err := r.Open("etc/passwd", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	for _, fd := range []int{r.Fd(), int(f.Fd())} {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %x, %v", fd, flags, err)
		}
	}
}
