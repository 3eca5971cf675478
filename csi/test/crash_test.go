package test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// points are the program's failpoints.
func points(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command(program, "failpoints").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// armed is how a point is reached: most by a life, some only when something else fails first.
func armed(point string, k kind) (env string, reachable bool) {
	switch {
	case strings.HasPrefix(point, "csi.loop.") && k.backend != "loop", strings.HasPrefix(point, "csi.btrfs.") && k.backend != "btrfs",
		strings.HasPrefix(point, "csi.dir.") && k.backend != "dir", strings.HasPrefix(point, "csi.modify.") && !k.tunable(),
		strings.HasPrefix(point, "csi.lvm.") && k.backend != "lvm", strings.HasPrefix(point, "csi.static.") && k.backend != "static",
		strings.Contains(point, "snapshot") && !k.copies():
		return "", false
	case k.backend == "lvm" && !slices.Contains(k.atStorage(), strings.Split(point, ".")[1]):
		return "", false
	case k.name == lvmThin && (point == "csi.lvm.after_erase" || point == "csi.lvm.after_activate"):
		return "", false // the pool zeroes; what was made stays active, and a life without a snapshot at rest never lets go
	case point == "csi.loop.after_freeze" && k.fs == "", point == "csi.node_expand.after_grow" && (k.backend == "btrfs" || k.backend == "dir"):
		return "", false // nothing is frozen without reflinks; a limit needs no growing on the node
	case point == "csi.create.undo":
		return "csi.create.after_ensure=1*error(full);" + point + "=1*kill", true
	case point == "csi.reconcile.step":
		return "csi.stage.after_intent=1*kill", true // and at the start that follows
	}
	return point + "=1*kill", true
}

// atStorage are the verbs of lvm's failpoints. In its emulated guest a life takes the better part of a minute, so each is
// tried where it does most: what other verbs do, all backends have in common.
func (k kind) atStorage() []string {
	if k.name == lvmThin {
		return []string{"lvm", "snapshot", "delete_snapshot", "expand"}
	}
	return []string{"lvm", "create", "delete", "stage"}
}

// size is that of a life's volumes: a quarter where every byte is emulated.
func (k kind) size(n int64) int64 {
	if k.backend == "lvm" {
		return n / 4
	}
	return n
}

// TestCrash: the driver dies at every failpoint in turn during a volume's whole life, is started again, and gets the
// same call again. Every byte is there, no byte is another's, and nothing is left.
func TestCrash(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		for _, point := range points(t) {
			env, reachable := armed(point, k)
			if !reachable {
				continue
			}
			t.Run(point, func(t *testing.T) {
				l := newLab(t, k, 900*mib, "")
				l.stop()
				l.start(env)
				c := &crash{lab: l, point: point}
				c.life()
				c.inBackground()
				if c.deaths == 0 {
					t.Error("the driver never died there")
				}
				l.empty()
			})
		}
	})
}

// crash calls the driver until the call succeeds, however often it dies.
type crash struct {
	*lab
	point  string
	deaths int
	power  func() // what else happens when it dies
}

func (c *crash) try(call func() error) {
	c.t.Helper()
	var err error
	for range 100 {
		if err = call(); err == nil {
			return
		}
		select {
		case <-c.done:
		case <-time.After(50 * time.Millisecond):
			if status.Code(err) == codes.Aborted || strings.Contains(err.Error(), "failpoint") || status.Code(err) == codes.Unavailable {
				continue
			}
			c.t.Fatalf("%s: %v", c.point, err)
		}
		c.deaths++
		if c.power != nil {
			c.power()
		}
		env := ""
		if c.point == "csi.reconcile.step" && c.deaths == 1 {
			env = c.point + "=1*kill"
		}
		if !c.start(env) {
			c.deaths++
			if !c.start("") {
				c.t.Fatalf("%s: the driver does not start again:\n%s", c.point, c.tail())
			}
		}
	}
	c.t.Fatalf("%s: it never succeeds: %v", c.point, err)
}

func (c *crash) volume(name string, from *csi.VolumeContentSource) (id string) {
	c.t.Helper()
	c.try(func() error {
		v, err := c.create(name, c.kind.size(64*mib), mounted(""), from)
		id = v.GetVolumeId()
		return err
	})
	return id
}

func (c *crash) attach(id string) string {
	c.t.Helper()
	c.try(func() error { return c.stage(id, mounted("")) })
	c.try(func() error {
		if c.power != nil { // after a boot the kubelet begins anew
			if err := c.stage(id, mounted("")); err != nil {
				return err
			}
		}
		return c.publish(id, "", mounted(""), false)
	})
	return c.target(id, "")
}

func (c *crash) detach(id string) {
	c.t.Helper()
	c.try(func() error { return c.unpublish(id, "") })
	c.try(func() error { return c.unstage(id) })
}

// inBackground waits for a death in what the driver does after it has answered: erasing.
func (c *crash) inBackground() {
	c.t.Helper()
	for range 100 {
		if c.deaths > 0 || !strings.Contains(c.point, "erase") && !strings.Contains(c.point, "blank") && !strings.Contains(c.point, "slice") {
			return
		}
		time.Sleep(100 * time.Millisecond)
		c.try(func() error { _, err := c.GetCapacity(c.ctx(), &csi.GetCapacityRequest{}); return err })
	}
}

// life is every verb once, with data that is looked at again.
func (c *crash) life() {
	t := c.t
	t.Helper()
	a := c.volume("a", nil)
	p := c.attach(a)
	data := []byte(strings.Repeat("a's own bytes ", 100_000))
	c.ok(write(p+"/file", data))
	c.expand(a, p)
	c.try(func() error {
		_, err := c.ControllerModifyVolume(c.ctx(), &csi.ControllerModifyVolumeRequest{VolumeId: a, MutableParameters: tuning(c.kind, true)})
		return err
	})
	if !tuned(t, c.lab, a, p, true) {
		t.Errorf("%s: the volume is not as it was modified", c.point)
	}
	if !c.kind.copies() {
		c.lastRites(a, c.neighbour())
		return
	}
	if c.kind.atRest() { // only at rest
		c.detach(a)
	}
	var snap string
	c.try(func() error {
		r, err := c.CreateSnapshot(c.ctx(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: a})
		snap = r.GetSnapshot().GetSnapshotId()
		return err
	})
	if c.kind.atRest() {
		p = c.attach(a)
	}
	c.ok(write(p+"/file", []byte("later")))
	b := c.neighbour()
	r := c.volumeOf(c.kind.size(96*mib), "r", fromSnapshot(snap))
	got, err := os.ReadFile(c.attach(r) + "/file")
	if err != nil || string(got) != string(data) {
		t.Errorf("%s: the restored file has %d bytes, want %d, %v", c.point, len(got), len(data), err)
	}
	if got, err := os.ReadFile(p + "/file"); err != nil || string(got) != "later" {
		t.Errorf("%s: the volume's file is %.20q, %v", c.point, got, err)
	}
	c.lastRites(a, b, r)
	c.try(func() error {
		_, err := c.DeleteSnapshot(c.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: snap})
		return err
	})
}

// neighbour is a new volume that is in use, and holds nothing.
func (c *crash) neighbour() string {
	c.t.Helper()
	b := c.volume("b", nil)
	q := c.attach(b)
	if ents, err := os.ReadDir(q); err != nil || len(ents) > 1 || len(ents) == 1 && ents[0].Name() != "lost+found" {
		c.t.Errorf("a new volume holds %v, %v", ents, err)
	}
	return b
}

// lastRites ends volumes that are in use.
func (c *crash) lastRites(all ...string) {
	c.t.Helper()
	for _, id := range all {
		c.detach(id)
		c.try(func() error { return c.remove(id) })
		c.try(func() error { return c.remove(id) })
	}
}

func (c *crash) volumeOf(size int64, name string, from *csi.VolumeContentSource) (id string) {
	c.t.Helper()
	c.try(func() error {
		v, err := c.create(name, size, mounted(""), from)
		id = v.GetVolumeId()
		return err
	})
	return id
}

func (c *crash) expand(id, path string) {
	c.t.Helper()
	size := &csi.CapacityRange{RequiredBytes: c.kind.size(96 * mib)}
	grows := false
	c.try(func() error {
		r, err := c.ControllerExpandVolume(c.ctx(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: size})
		grows = r.GetNodeExpansionRequired()
		return err
	})
	if !grows {
		return
	}
	if !canGrowExt4(c.t) { // grown at the next staging; a call that has nothing to do is still made
		c.detach(id)
		c.attach(id)
	}
	c.try(func() error {
		_, err := c.NodeExpandVolume(c.ctx(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path, CapacityRange: size})
		return err
	})
}

func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// TestPowerLoss: the same with the file system that holds journal and pool shut down at the moment of death, so that
// only what was synced is there when it is mounted again (FS_IOC_SHUTDOWN without flushing the log).
func TestPowerLoss(t *testing.T) {
	for _, k := range []kind{{"loop-ext4", "loop", "ext4"}, {"loop-xfs", "loop", "xfs"}} { // btrfs has no such ioctl before Linux 6.19
		t.Run(k.name, func(t *testing.T) {
			losePower(t, k, false, "create", "delete", "expand", "snapshot", "delete_snapshot", "journal", "loop", "stage", "publish", "unpublish", "unstage")
		})
		t.Run(k.name+", journal elsewhere", func(t *testing.T) { losePower(t, k, true, "create", "delete", "delete_snapshot") })
	}
}

// losePower tries the failpoints of verbs, with the journal on another file system than the pool or not: there what is done to the
// one does not bring the other to the disk.
func losePower(t *testing.T, k kind, elsewhere bool, known ...string) {
	for _, point := range points(t) {
		verb := strings.Split(point, ".")[1]
		if !slices.Contains(known, verb) || strings.Contains(point, "freeze") || strings.Contains(point, "undo") {
			continue
		}
		t.Run(point, func(t *testing.T) {
			l := newLab(t, k, 900*mib, "")
			l.stop()
			if !elsewhere {
				b, err := os.ReadFile(l.conf)
				l.ok(err)
				l.ok(os.WriteFile(l.conf, []byte(strings.Replace(string(b), l.dir+"/root", l.mnt+"/root", 1)), 0o600))
				l.command("rm", "-rf", l.poolDir())
			}
			c := &crash{lab: l, point: point}
			c.power = func() { powerLoss(l) }
			l.start(point + "=1*kill")
			c.powerLife()
			l.empty()
		})
	}
}

// powerLoss ends everything without flushing, and mounts what is left.
func powerLoss(l *lab) {
	l.t.Helper()
	f, err := os.Open(l.mnt)
	l.ok(err)
	noFlush := uint32(2)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8004587d, uintptr(unsafe.Pointer(&noFlush))); errno != 0 {
		l.t.Fatal(errno)
	}
	l.ok(f.Close())
	for _, m := range l.mounts() {
		if m != l.mnt {
			l.ok(unix.Unmount(m, unix.MNT_DETACH))
		}
	}
	for range 200 {
		if err = unix.Unmount(l.mnt, 0); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.ok(err)
	l.mountPool()
}

// powerLife is a life whose mounts end before the power does; what was acknowledged must be there.
func (c *crash) powerLife() {
	t := c.t
	a := c.volume("a", nil)
	p := c.attach(a)
	data := []byte(strings.Repeat("a's own bytes ", 10_000))
	c.ok(write(p+"/file", data))
	c.detach(a)
	var snap string
	c.try(func() error {
		r, err := c.CreateSnapshot(c.ctx(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: a})
		snap = r.GetSnapshot().GetSnapshotId()
		return err
	})
	c.try(func() error {
		_, err := c.ControllerExpandVolume(c.ctx(), &csi.ControllerExpandVolumeRequest{VolumeId: a, CapacityRange: &csi.CapacityRange{RequiredBytes: 96 * mib}})
		return err
	})
	r := c.volume("r", fromSnapshot(snap))
	for _, id := range []string{a, r} {
		got, err := os.ReadFile(c.attach(id) + "/file")
		if err != nil || string(got) != string(data) {
			t.Errorf("%s: %d bytes, want %d, %v", c.point, len(got), len(data), err)
		}
		c.detach(id)
		c.try(func() error {
			// That it is unstaged was written without a sync. A power cut brings the older word back, which a boot would make
			// void and this one does not.
			for _, err := range []error{c.unpublish(id, ""), c.unstage(id)} {
				if err != nil && status.Code(err) != codes.NotFound {
					return err
				}
			}
			return c.remove(id)
		})
	}
	c.try(func() error {
		_, err := c.DeleteSnapshot(c.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: snap})
		return err
	})
}
