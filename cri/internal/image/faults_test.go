package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/proto/errs"
)

// loopFS makes a file system on a loop device; what it returns takes it away, and fails the test if it cannot.
func loopFS(t *testing.T, mb int64, mkfs ...string) (mnt string) {
	t.Helper()
	disk, mnt := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, mb<<20))
	run(t, mkfs[0], append(mkfs[1:], disk)...)
	run(t, "mount", "-o", "loop", disk, mnt)
	t.Cleanup(func() { run(t, "umount", "-l", mnt) }) // the store that was open keeps a descriptor until it is collected
	return mnt
}

// nothing checks that a store has no image, and nothing of one but what waits for the next try.
func nothing(t *testing.T, s *image.Service) {
	t.Helper()
	if u := s.Usage(); len(s.List()) != 0 || u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("left: %v, %+v", s.List(), u)
	}
	for _, d := range []string{"images", "layers"} {
		if e, err := os.ReadDir(filepath.Join(s.Usage().Mountpoint, d)); err != nil || len(e) > 0 {
			t.Errorf("%s: %v, %v", d, e, err)
		}
	}
}

// TestDiskFullAndEmptiedAgain fills ext4, which keeps its word later than tmpfs, in bytes and in inodes. Removing works
// on a full disk, and when there is room again, so does pulling, without a restart.
func TestDiskFullAndEmptiedAgain(t *testing.T) {
	h := newHub(t)
	small := h.push(t, "small:1", imageOf(t, numbered(t, 1)))
	big := h.push(t, "big:1", imageOf(t, layerOf(t, tarOf(t, file("a", strings.Repeat("0123456789abcde\n", 600_000))))))
	many := make([]member, 0, 300)
	for i := range 300 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	crowd := h.push(t, "crowd:1", imageOf(t, layerOf(t, tarOf(t, many...))))
	for name, c := range map[string]struct {
		mkfs []string
		ref  string
		fill func(mnt string) error
	}{
		"bytes":  {[]string{"mke2fs", "-q", "-t", "ext4", "-m", "0", "-F"}, big, func(mnt string) error { return ballast(mnt, 13<<20) }},
		"inodes": {[]string{"mke2fs", "-q", "-t", "ext4", "-N", "256", "-F"}, crowd, func(string) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			mnt := loopFS(t, 24, c.mkfs...)
			s := open(t, filepath.Join(mnt, "images"))
			s.Retain(nil)
			must(t, c.fill(mnt))
			for range 3 {
				if _, err := s.Pull(t.Context(), c.ref, nil); errs.Of(err) != errs.ResourceExhausted || !strings.Contains(err.Error(), "no space left on device") {
					t.Errorf("error %v of class %v", err, errs.Of(err))
				}
				nothing(t, s)
				runFor(t, s)
			}
			_, err := s.Pull(t.Context(), small, nil)
			must(t, err)
			must(t, ballast(mnt, 1<<30)) // not one byte is left
			must(t, s.Remove(t.Context(), small))
			must(t, os.Remove(filepath.Join(mnt, "ballast")))
			runFor(t, s)
			if name == "bytes" {
				if _, err := s.Pull(t.Context(), c.ref, nil); err != nil {
					t.Errorf("with room again: %v", err)
				}
			}
		})
	}
}

// ballast takes n bytes of a file system, or all.
func ballast(mnt string, n int64) error {
	f, err := os.OpenFile(filepath.Join(mnt, "ballast"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for ; n > 0 && err == nil; n -= int64(len(buf)) {
		_, err = f.Write(buf)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// TestReadOnlyAndBroken pulls and removes while the file system is read-only (EROFS), and after it has failed (EIO):
// each says so, images that are there stay, and after a remount all works, without a restart.
func TestReadOnlyAndBroken(t *testing.T) {
	h := newHub(t)
	first, second := h.push(t, "first:1", imageOf(t, numbered(t, 1))), h.push(t, "second:1", imageOf(t, numbered(t, 2)))
	mnt := loopFS(t, 64, "mke2fs", "-q", "-t", "ext4", "-F")
	s := open(t, filepath.Join(mnt, "images"))
	s.Retain(nil)
	img, err := s.Pull(t.Context(), first, nil)
	must(t, err)
	must(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := s.Pull(t.Context(), second, nil); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("pull on a read-only disk: %v", err)
	}
	if err := s.Remove(t.Context(), first); err == nil {
		t.Error("removed on a read-only disk")
	}
	if _, err := s.Get(img.ID); err != nil {
		t.Errorf("an image that could not be removed: %v", err)
	}
	must(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	if _, err := s.Pull(t.Context(), second, nil); err != nil || len(s.List()) != 2 {
		t.Errorf("pull after a remount: %v", err)
	}
	must(t, s.Remove(t.Context(), first))
	powerCut(t, mnt)
	if _, err := s.Pull(t.Context(), first, nil); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("pull on a broken disk: %v", err)
	}
	if n := len(s.List()); n != 1 {
		t.Errorf("%d images", n)
	}
}

// TestFrozen freezes the file system under a pull, which is then in uninterruptible sleep: List and Get answer at
// once, and when it thaws the pull ends as its caller wished.
func TestFrozen(t *testing.T) {
	h := newHub(t)
	first, second := h.push(t, "first:1", imageOf(t, numbered(t, 1))), h.push(t, "second:1", imageOf(t, numbered(t, 2)))
	mnt := loopFS(t, 64, "mke2fs", "-q", "-t", "ext4", "-F")
	s := open(t, filepath.Join(mnt, "images"))
	s.Retain(nil)
	_, err := s.Pull(t.Context(), first, nil)
	must(t, err)
	dir, err := os.Open(mnt)
	must(t, err)
	defer dir.Close()                           //nolint:errcheck // read only
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW
	must(t, unix.IoctlSetInt(int(dir.Fd()), freeze, 0))
	melt := sync.OnceValue(func() error { return unix.IoctlSetInt(int(dir.Fd()), thaw, 0) })
	defer melt() //nolint:errcheck // where the test has failed: what sleeps here could not be killed
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), second, nil)
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	for range 1000 {
		if _, err := s.Get(first); err != nil || len(s.List()) != 1 || s.Usage().Inodes == 0 {
			t.Fatalf("while frozen: %v", err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("1,000 rounds of List, Get and Usage took %v", took)
	}
	select {
	case err := <-done:
		t.Errorf("a pull to a frozen disk has ended: %v", err)
	default:
	}
	must(t, melt())
	must(t, <-done)
}

// descriptorsEnv makes the test binary a daemon that runs out of descriptors: "root ref".
const descriptorsEnv = "BERTH_IMAGE_DESCRIPTORS"

// scarce pulls with every number of free descriptors from none on, and tells what came of each; then with all.
func scarce(root, ref string) error {
	s, err := image.Open(configOf(root), slogDiscard())
	if err != nil {
		return err
	}
	s.Retain(nil)
	s.Hurry()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		return err
	}
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for free := range 60 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(e) + free), Max: old.Max}); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, perr := s.Pull(ctx, ref, nil)
		cancel()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			return err
		}
		fmt.Printf("%d: %v\n", free, perr)
		if (perr == nil) != (len(s.List()) == 1) {
			return fmt.Errorf("%d images after %w", len(s.List()), perr)
		}
		if perr == nil {
			if err := s.Remove(context.Background(), ref); err != nil {
				return err
			}
		}
	}
	img, err := s.Pull(context.Background(), ref, nil)
	if err != nil {
		return err
	}
	_, err = s.Use("c", img.ID)
	return err
}

// TestOutOfDescriptors lets a daemon pull with ever so few descriptors: it fails with an error that says so, or the
// image is whole; and with enough of them it works again, in the same process.
func TestOutOfDescriptors(t *testing.T) {
	h := newHub(t)
	ref := h.push(t, "app:1", imageOf(t, numbered(t, 1), numbered(t, 2)))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), descriptorsEnv+"="+t.TempDir()+" "+ref)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	failed := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.HasSuffix(l, ": <nil>") })
	for _, l := range failed {
		if !strings.Contains(l, "too many open files") && !strings.Contains(l, "fork/exec") { // there it is EBADF, of dup3
			t.Errorf("not said why: %s", l)
		}
	}
	if len(failed) == 0 || len(failed) == len(lines) {
		t.Errorf("%d of %d failed", len(failed), len(lines))
	}
	t.Logf("%d of %d numbers of descriptors were too few", len(failed), len(lines))
}
