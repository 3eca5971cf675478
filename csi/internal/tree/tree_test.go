package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

func must(t *testing.T, errors ...error) {
	t.Helper()
	for _, err := range errors {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// plant makes a tree with one of everything.
func plant(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.Mkdir(at("dir"), 0o755), os.WriteFile(at("dir/file"), bytes.Repeat([]byte("x"), 100_000), 0o640), os.Link(at("dir/file"), at("second")),
		os.Symlink("/etc/passwd", at("link")), os.WriteFile(at("empty"), nil, 0o600), unix.Mkfifo(at("fifo"), 0o622),
		os.Mkdir(at("lost+found"), 0o700), os.WriteFile(at("lost+found/old"), nil, 0o600))
	sparse, err := os.Create(at("sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20)
	must(t, err, sparse.Close())
	must(t, os.Chown(at("dir/file"), 1000, 1001), os.Chmod(at("dir/file"), 0o4755|os.ModeSetuid), os.Lchown(at("link"), 7, 8),
		unix.Setxattr(at("dir"), "trusted.mark", []byte("m"), 0), os.Chown(root, 1234, 4321), os.Chmod(root, 0o2770|os.ModeSetgid))
	if err := unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1_000_000_000, 5000)
	must(t, os.Chtimes(at("empty"), old, old), os.Chtimes(at("dir"), old, old))
	return root
}

// look describes a tree, for comparison.
func look(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		name, _ := filepath.Rel(root, path)
		if name == "lost+found" {
			return filepath.SkipDir
		}
		text := fmt.Sprintf("%o %d:%d links %d rdev %d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			must(t, err)
			text += fmt.Sprintf(" size %d sparse %v content %x at %d", st.Size, st.Blocks*512 < st.Size/2, bytes.TrimLeft(b, "\x00x"), st.Mtim.Nano())
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			text += target
		case unix.S_IFDIR:
			mark := make([]byte, 8)
			n, _ := unix.Getxattr(path, "trusted.mark", mark)
			text += fmt.Sprintf(" mark %q", mark[:max(n, 0)])
			if name == "dir" {
				text += fmt.Sprint(" at ", st.Mtim.Nano())
			}
		}
		all[name] = text
		return nil
	}))
	return all
}

func dir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestCopy: a copy has everything that the tree has, but for a lost+found.
func TestCopy(t *testing.T) {
	from, to := plant(t), t.TempDir()
	must(t, Copy(t.Context(), dir(t, from), dir(t, to)))
	want, got := look(t, from), look(t, to)
	delete(want, ".") // the number of its links counts lost+found
	root := got["."]
	delete(got, ".")
	if len(got) != len(want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s is %s, want %s", name, got[name], text)
		}
	}
	if want := "42770 1234:4321"; len(root) < len(want) || root[:len(want)] != want {
		t.Errorf("the root is %s, want %s", root, want)
	}
	u, err := Size(t.Context(), dir(t, to))
	if err != nil || u.Inodes != 7 || u.Bytes < 100_000 || u.Bytes > 1<<20 {
		t.Errorf("size: %+v, %v", u, err)
	}
}

// TestMountBelow: what is mounted below is somebody else's.
func TestMountBelow(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace with it
	must(t, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	from, to := plant(t), t.TempDir()
	must(t, unix.Mount("tmpfs", from+"/dir", "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(from+"/dir", 0)) })
	if err := Copy(t.Context(), dir(t, from), dir(t, to)); errs.Of(err) != errs.FailedPrecondition {
		t.Errorf("copied through a mount: %v", err)
	}
}

// TestCanceled: a copy ends with its caller.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Copy(ctx, dir(t, plant(t)), dir(t, t.TempDir())); !errors.Is(err, context.Canceled) {
		t.Errorf("went on: %v", err)
	}
}

// TestEmpty: all goes, however it is nested, marked and linked; what a link names stays.
func TestEmpty(t *testing.T) {
	trash, outside := plant(t), t.TempDir()
	must(t, os.WriteFile(outside+"/kept", nil, 0o600), os.Symlink(outside, trash+"/out"))
	deep, err := os.Open(trash)
	must(t, err)
	for range 3000 { // deeper than a path may be long, and than files may be open
		must(t, unix.Mkdirat(int(deep.Fd()), "d", 0o755))
		next, err := open(deep, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err, deep.Close())
		deep = next
	}
	must(t, deep.Close())
	for _, name := range []string{"/dir/file", "/dir"} {
		f, err := os.Open(trash + name)
		must(t, err)
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		must(t, err, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|immutable), f.Close())
	}
	left, err := Empty(t.Context(), dir2(t, trash))
	if err != nil || left != 0 {
		t.Errorf("%d left, %v", left, err)
	}
	names, err := os.ReadDir(trash)
	if err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	if _, err := os.Stat(outside + "/kept"); err != nil {
		t.Error(err)
	}
}

// dir2 is dir for who closes it.
func dir2(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	return f
}
