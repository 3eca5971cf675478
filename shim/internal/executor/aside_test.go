package executor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// TestOverlayAside: what kernels before 6.13 need makes the same rootfs, and leaves no mount behind.
func TestOverlayAside(t *testing.T) {
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
	holder := exec.Command("/bin/sleep", "30")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(holder.Process.Pid), "ns/user"))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close() //nolint:errcheck // read only
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"one", "two", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"one/a", "two/b"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in := &inputs{join: map[string]int{"user": int(ns.Fd())}, rootUID: 200000, rootGID: 200000}
	defer in.close()
	r := &v1.Rootfs{Lower: []string{dir + "/one", dir + "/two"}, Upper: dir + "/upper", Work: dir + "/work"}
	var fd int
	if err := aside(func() (err error) { fd, err = in.overlayOf(r, in.layerAside); return err }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, 0); err != nil || st.Uid != 200000 {
			t.Errorf("%s belongs to %d, want 200000 (%v)", name, st.Uid, err)
		}
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(before) {
		t.Errorf("the mounts changed: %v\n%s", err, after)
	}
}
