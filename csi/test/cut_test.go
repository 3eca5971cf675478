package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// What a power cut needs comes from outside the guest that loses it: the disk that stays, what kind of pool is on it,
// the failpoint at which the power goes ("": it does not), and what was acknowledged before it went the last time.
const (
	cutDisk = "BERTH_CSI_CUT_DISK"
	cutPool = "BERTH_CSI_CUT_POOL" // BACKEND-FILESYSTEM
	cutAt   = "BERTH_CSI_CUT_AT"
	cutAcks = "BERTH_CSI_CUT_ACKS" // NAME=VALUE,...
)

// TestPowerCut is one boot of a machine that loses its power at a failpoint: first the life that was cut off in the boot
// before is lived to its end by the same calls, with every byte that was acknowledged; then a new one is begun. See
// e2e/powercut.
func TestPowerCut(t *testing.T) {
	disk := os.Getenv(cutDisk)
	if disk == "" {
		t.Skip("needs a machine that may lose its power: `make test-power` has one")
	}
	backend, fs, _ := strings.Cut(os.Getenv(cutPool), "-")
	l := &lab{t: t, dir: "/run/cut", kind: kind{os.Getenv(cutPool), backend, fs}, mnt: "/run/cut/pool"}
	t.Cleanup(l.end)
	for _, d := range []string{l.dir, l.mnt, l.dir + "/kubelet", l.dir + "/state"} {
		l.ok(os.Mkdir(d, 0o700))
	}
	l.ok(unix.Mount(disk, l.mnt, fs, 0, ""))
	l.conf = l.dir + "/csi.toml"
	l.ok(os.WriteFile(l.conf, fmt.Appendf(nil, "root=%q\nstate=%q\nsocket=%q\nregistration_dir=''\nkubelet_dir=%q\ndebug_socket=%q\nnode='n1'\n[pools.p]\nbackend=%q\npath=%q\ndefault=true\n",
		l.mnt+"/root", l.dir+"/state", l.dir+"/csi.sock", l.dir+"/kubelet", l.dir+"/debug.sock", backend, l.poolDir()), 0o600))
	l.start("")
	c := &cut{crash: crash{lab: l, power: goDark}, acks: map[string]string{}}
	for ack := range strings.SplitSeq(os.Getenv(cutAcks), ",") {
		if name, value, ok := strings.Cut(ack, "="); ok {
			c.acks[name] = value
		}
	}
	c.life()
	l.empty()
	if c.point = os.Getenv(cutAt); c.point == "" || t.Failed() {
		return
	}
	l.stop()
	l.start(c.point + "=1*kill")
	c.life()
	t.Errorf("%s: the driver never died there", c.point)
}

// goDark says that the power may go now, and waits for it.
func goDark() {
	fmt.Println("power: off")
	time.Sleep(time.Hour)
}

// cut is a life that goes on from what was acknowledged.
type cut struct {
	crash
	acks map[string]string
}

// ack tells the outside that something is acknowledged: from now on it must be there.
func (c *cut) ack(name, value string) {
	c.acks[name] = value
	fmt.Printf("ack: %s=%s\n", name, value)
}

func (c *cut) acked(name string) bool { _, ok := c.acks[name]; return ok }

// file checks a file that was acknowledged, or writes it.
func (c *cut) file(dir, name string, data []byte) {
	c.t.Helper()
	path := filepath.Join(dir, name)
	if c.acked(name) {
		if got, err := os.ReadFile(path); err != nil || !slices.Equal(got, data) {
			c.t.Errorf("%s: %s has %d bytes after the power cut, want %d, %v", c.point, name, len(got), len(data), err)
		}
		return
	}
	c.ok(write(path, data))
	parent, err := os.Open(dir)
	c.ok(err)
	c.ok(errors.Join(parent.Sync(), parent.Close()))
	c.ack(name, "")
}

func (c *cut) life() {
	c.t.Helper()
	if !c.acked("deleting") {
		c.build()
		c.ack("deleting", "")
	}
	for _, name := range []string{"a", "r"} {
		c.try(func() error { return c.remove(c.acks[name]) })
	}
	c.try(func() error {
		_, err := c.DeleteSnapshot(c.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: c.acks["s"]})
		return err
	})
	fmt.Println("ack: whole=")
	clear(c.acks)
}

// build makes a volume with a file, a snapshot of it, a second file that the snapshot has not, a larger size, and a
// volume from the snapshot.
func (c *cut) build() {
	c.t.Helper()
	first, second := []byte(strings.Repeat("of before the snapshot ", 20_000)), []byte(strings.Repeat("of after it ", 20_000))
	a := c.volume("a", nil)
	c.same("a", a)
	c.file(c.attach(a), "first", first)
	c.detach(a)
	var snap string
	c.try(func() error {
		r, err := c.CreateSnapshot(c.ctx(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: a})
		snap = r.GetSnapshot().GetSnapshotId()
		return err
	})
	c.same("s", snap)
	c.file(c.attach(a), "second", second)
	c.detach(a)
	c.try(func() error {
		_, err := c.ControllerExpandVolume(c.ctx(), &csi.ControllerExpandVolumeRequest{VolumeId: a, CapacityRange: &csi.CapacityRange{RequiredBytes: 96 * mib}})
		return err
	})
	r := c.volume("r", fromSnapshot(snap))
	c.same("r", r)
	p := c.attach(r)
	c.file(p, "first", first)
	if _, err := os.Stat(p + "/second"); !os.IsNotExist(err) {
		c.t.Errorf("%s: the snapshot has what was written after it: %v", c.point, err)
	}
	c.detach(r)
	p = c.attach(a)
	c.file(p, "first", first)
	c.file(p, "second", second)
	c.detach(a)
}

// same checks that a call made again gave the same object.
func (c *cut) same(name, id string) {
	c.t.Helper()
	if c.acked(name) && c.acks[name] != id {
		c.t.Errorf("%s: %s is %s after the power cut, was %s", c.point, name, id, c.acks[name])
	}
	c.ack(name, id)
}
