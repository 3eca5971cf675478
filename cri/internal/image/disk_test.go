package image_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/proto/errs"
)

// TestDiskFull fills a small file system, in bytes and in inodes: the pull says so, leaves nothing, and works
// again when there is room, without a restart.
func TestDiskFull(t *testing.T) {
	h := newHub(t)
	var many []member
	for i := range 300 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	small := h.push(t, "small:1", imageOf(t, numbered(t, 1)))
	for name, c := range map[string]struct{ options, ref string }{
		"bytes":  {"size=1m", h.push(t, "big:1", imageOf(t, layerOf(t, tarOf(t, file("a", strings.Repeat("x", 2<<20))))))},
		"inodes": {"nr_inodes=100", h.push(t, "many:1", imageOf(t, layerOf(t, tarOf(t, many...))))},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			must(t, unix.Mount("tmpfs", root, "tmpfs", 0, c.options))
			t.Cleanup(func() { must(t, unix.Unmount(root, unix.MNT_DETACH)) })
			s := open(t, root)
			s.Retain(nil)
			if _, err := s.Pull(t.Context(), c.ref, nil); errs.Of(err) != errs.ResourceExhausted {
				t.Errorf("error %v of class %v", err, errs.Of(err))
			}
			if len(s.List()) != 0 || s.Usage().Bytes != 0 {
				t.Errorf("left: %v, %+v", s.List(), s.Usage())
			}
			runFor(t, s)
			if _, err := s.Pull(t.Context(), small, nil); err != nil {
				t.Errorf("a small image after that: %v", err)
			}
		})
	}
}

// powerCut stops an ext4 file system as a power cut would: what is not on the disk is lost (FS_IOC_SHUTDOWN,
// EXT4_GOING_FLAGS_NOLOGFLUSH).
func powerCut(t *testing.T, mnt string) {
	t.Helper()
	fd, err := unix.Open(mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd) //nolint:errcheck // nothing written
	flags := uint32(2)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0x8004587d, uintptr(unsafe.Pointer(&flags))); e != 0 {
		t.Fatalf("FS_IOC_SHUTDOWN: %v", e)
	}
	runtime.KeepAlive(&flags)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestPowerCut cuts the power right after a pull has returned, and in the middle of one: an image that was
// acknowledged is there with every byte, and one that was not is pulled.
func TestPowerCut(t *testing.T) {
	h := newHub(t)
	var ls []v1.Layer
	for _, l := range crashLayers() {
		ls = append(ls, layerOf(t, tarOf(t, l...)))
	}
	ref := h.push(t, "crash:1", imageOf(t, ls...))
	for _, fail := range []string{"", "layers.commit.before_sync", "layers.commit.renamed", "image.record.before", "image.record.after"} {
		t.Run("after "+fail, func(t *testing.T) {
			disk, mnt := filepath.Join(t.TempDir(), "disk"), t.TempDir()
			must(t, os.WriteFile(disk, nil, 0o600))
			must(t, os.Truncate(disk, 64<<20))
			run(t, "mke2fs", "-q", "-t", "ext4", "-F", disk)
			run(t, "mount", "-o", "loop,commit=600", disk, mnt)
			mounted := true
			t.Cleanup(func() {
				if mounted {
					unmount(t, mnt)
				}
			})
			root := filepath.Join(mnt, "images")
			if fail == "" {
				runChild(t, root, ref, "")
			} else if !runChild(t, root, ref, fail+"=kill") {
				t.Fatal("the child was not killed")
			}
			powerCut(t, mnt)
			unmount(t, mnt)
			mounted = false
			unused(t, disk) // else it is not read again, but the same that was shut down
			run(t, "mount", "-o", "loop", disk, mnt)
			mounted = true
			checkAfterCut(t, root, ref, fail == "" || fail == "image.record.after")
		})
	}
}

// checkAfterCut looks at the store in a process of its own, for an open one would keep the file system busy.
func checkAfterCut(t *testing.T, root, ref string, acknowledged bool) {
	t.Helper()
	if records, _ := filepath.Glob(filepath.Join(root, "images/*.image")); acknowledged != (len(records) == 1) && acknowledged {
		t.Errorf("records after the cut: %v", records)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+root+" "+ref, "BERTH_USE=1")
	if acknowledged {
		cmd.Env = append(cmd.Env, "BERTH_NO_PULL=1")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("after the cut: %v\n%s", err, out)
	}
}

// useAll lends the image and so verifies every layer; the boot mark is removed first.
func useAll(root, ref string, pull func(*image.Service) error) error {
	if err := os.RemoveAll(filepath.Join(root, "clean")); err != nil {
		return err
	}
	s, err := image.Open(configOf(root), slogDiscard())
	if err != nil {
		return err
	}
	if err := pull(s); err != nil {
		return err
	}
	img, err := s.Get(ref)
	if err != nil {
		return err
	}
	rootfs, err := s.Use("c", img.ID)
	if err != nil {
		return err
	}
	for _, want := range []string{"srv/new", "srv/a", "c"} {
		ok := false
		for _, l := range rootfs.Lower {
			b, err := os.ReadFile(filepath.Join(l, want))
			ok = ok || err == nil && len(b) > 2
		}
		if !ok {
			return fmt.Errorf("%s is not there or empty", want)
		}
	}
	return nil
}
