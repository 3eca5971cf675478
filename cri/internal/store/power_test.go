package store_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disk is a file system of its own in a file, which writes nothing by itself for ten minutes.
type disk struct {
	t         *testing.T
	file, mnt string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t, filepath.Join(t.TempDir(), "disk"), t.TempDir()}
	if err := os.WriteFile(d.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.file, 32<<20); err != nil {
		t.Fatal(err)
	}
	d.run("mke2fs", "-q", "-t", "ext4", "-F", d.file)
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) run(args ...string) {
	d.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v: %s", args, err, out)
	}
}

func (d *disk) mount() { d.run("mount", "-o", "loop,commit=600", d.file, d.mnt) }

// unmount waits until the loop device is gone as well: else the next mount is of what is in memory.
func (d *disk) unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.mnt, 0); err != nil {
		d.t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		out, err := exec.Command("losetup", "-j", d.file).CombinedOutput()
		if err == nil && len(out) == 0 {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("the disk is still in use: %s %v", out, err)
		}
	}
}

// cut ends the file system without writing anything more (FS_IOC_SHUTDOWN with NOLOGFLUSH, linux/fs.h), and mounts what
// is on the disk.
func (d *disk) cut() {
	d.t.Helper()
	fd, err := unix.Open(d.mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	flags := uint32(2)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0x8004587d, uintptr(unsafe.Pointer(&flags)))
	runtime.KeepAlive(&flags)
	_ = unix.Close(fd)
	if errno != 0 {
		d.t.Fatalf("FS_IOC_SHUTDOWN: %v", errno)
	}
	d.unmount()
	d.mount()
}

// TestPowerCut: what was put or deleted before a sync is so after a power cut, and nothing is torn; Close is a sync, as
// the tick of Run is.
func TestPowerCut(t *testing.T) {
	d := newDisk(t)
	dir := filepath.Join(d.mnt, "store")
	put := func(put, remove map[string]string) {
		t.Helper()
		s := open(t, dir)
		for id, data := range put {
			if err := s.Put("pod", id, []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		for id := range remove {
			if err := s.Delete("pod", id); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		d.cut()
		s := open(t, dir)
		all, err := s.Load("pod")
		if err != nil || len(s.Damaged()) > 0 {
			t.Errorf("%s: damaged %v, %v", when, s.Damaged(), err)
		}
		for id, data := range want {
			if string(all[id]) != data {
				t.Errorf("%s: %s is %q, want %q", when, id, all[id], data)
			}
		}
		if len(all) != len(want) {
			t.Errorf("%s: %d records, want %d", when, len(all), len(want))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	put(map[string]string{"a": "first", "b": "first"}, nil)
	check("new records", map[string]string{"a": "first", "b": "first"})
	put(map[string]string{"a": "second"}, nil)
	check("a change", map[string]string{"a": "second", "b": "first"})
	put(nil, map[string]string{"b": ""})
	check("a deletion", map[string]string{"a": "second"})
}
