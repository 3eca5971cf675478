package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-project/berth/csi/internal/loopdev"
)

// makeDisks makes devices of which a volume of a third of size fits on any, in a directory of links, and says how the
// configuration names them.
func (l *lab) makeDisks(size int64) string {
	l.t.Helper()
	l.ok(os.Mkdir(l.dir+"/devices", 0o700))
	for i := range 4 {
		l.addDisk(fmt.Sprintf("disk%d", i), size/3)
	}
	return fmt.Sprintf("devices=[%q]\n", l.dir+"/devices")
}

// addDisk makes a device of size bytes, that are zero, and names it.
func (l *lab) addDisk(name string, size int64) (node string) {
	l.t.Helper()
	image := l.dir + "/" + name + ".img"
	l.ok(os.WriteFile(image, nil, 0o600))
	l.ok(os.Truncate(image, size/4096*4096))
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	l.ok(err)
	dev, err := loopdev.Attach(f, loopdev.Options{})
	l.ok(errors.Join(err, f.Close()))
	l.ok(dev.Close())
	l.ok(os.Symlink(dev.Name(), l.dir+"/devices/"+name))
	return dev.Name()
}

// waitForDisks waits until all devices are taken in, or erased again, but for those that are refused or in use.
func (l *lab) waitForDisks() {
	l.t.Helper()
	if l.kind.backend != "static" {
		return
	}
	var left []string
	for range 600 {
		known, _ := filepath.Glob(l.dir + "/pool/[!t]*/*") // all are in the trash before the first one is erased
		left, _ = filepath.Glob(l.dir + "/pool/trash/*")
		if len(left) == 0 && len(known) > 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	l.t.Errorf("devices are not erased: %v", left)
}

// endDisks detaches the devices.
func (l *lab) endDisks() {
	images, _ := filepath.Glob(l.dir + "/disk*.img")
	for _, image := range images {
		f, err := os.Open(image)
		if err == nil {
			err = errors.Join(loopdev.Release(f), f.Close())
		}
		if err != nil {
			l.t.Errorf("left behind: %v", err)
		}
	}
}

// claimed is the device of a volume while something is attached to it: of a device itself nothing tells.
func (l *lab) claimed(id string) string {
	b, err := os.ReadFile(l.dir + "/pool/volumes/" + id)
	l.ok(err)
	_, after, _ := strings.Cut(string(b), `"device":"`)
	path, _, _ := strings.Cut(after, `"`)
	node, err := filepath.EvalSymlinks(path)
	l.ok(err)
	return node
}

// staticLab is a driver with a pool of no device yet.
func staticLab(t *testing.T, disks map[string]int64) *lab {
	t.Helper()
	l := newLab(t, kind{"static", "static", ""}, 24*mib, "")
	l.stop()
	for i := range 4 { // of the lab's own
		l.ok(os.Remove(fmt.Sprintf("%s/devices/disk%d", l.dir, i)))
	}
	for name, size := range disks {
		l.addDisk(name, size)
	}
	return l
}

func (l *lab) again() {
	l.t.Helper()
	if !l.start("") {
		l.t.Fatalf("the driver does not start:\n%s", l.tail())
	}
	time.Sleep(300 * time.Millisecond)
	l.waitForDisks()
}

// TestStaticRefuses: a device that holds anything at its edges, or is in use, is named and stays as it is to the last
// byte, while blank ones are used.
func TestStaticRefuses(t *testing.T) {
	l := staticLab(t, map[string]int64{"disk-blank": 64 * mib, "disk-ext4": 64 * mib, "disk-end": 64 * mib, "disk-part": 64 * mib, "disk-used": 64 * mib})
	put := func(disk string, at int64, text string) {
		f, err := os.OpenFile(l.dir+"/devices/"+disk, os.O_WRONLY, 0)
		l.ok(err)
		_, err = f.WriteAt([]byte(text), at)
		l.ok(errors.Join(err, f.Sync(), f.Close()))
	}
	l.command("mkfs.ext4", "-q", l.dir+"/devices/disk-ext4")
	put("disk-end", 64*mib-600, "somebody's own format")
	put("disk-part", 512, "EFI PART")
	used, err := os.OpenFile(l.dir+"/devices/disk-used", os.O_RDONLY|os.O_EXCL, 0)
	l.ok(err)
	before := map[string][32]byte{}
	for _, d := range []string{"ext4", "end", "part"} {
		before[d] = sum(t, l.dir+"/disk-"+d+".img")
	}
	l.again()
	capacity, err := l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
	if err != nil || capacity.GetAvailableCapacity() != 64*mib {
		t.Errorf("capacity %v, %v", capacity, err)
	}
	h, err := l.NodeGetStorageHealth(l.ctx(), &csi.NodeGetStorageHealthRequest{})
	l.ok(err)
	said := fmt.Sprint(h.GetBackendHealth())
	for disk, why := range map[string]string{"disk-ext4": "ext2, ext3 or ext4", "disk-end": "not known here", "disk-part": "GPT", "disk-used": "in use"} {
		if _, after, _ := strings.Cut(said, disk+" is not taken"); !strings.Contains(strings.SplitN(after, "\n", 2)[0], why) {
			t.Errorf("of %s it says %s", disk, said)
		}
	}
	id := l.must("v", 32*mib, mounted(""))
	_, err = l.create("w", 32*mib, mounted(""), nil)
	code(t, err, codes.ResourceExhausted, "left to promise")
	l.ok(write(l.up(id, mounted(""))+"/file", []byte("x")))
	l.down(id)
	l.ok(l.remove(id))
	l.empty()
	for d, want := range before {
		if sum(t, l.dir+"/disk-"+d+".img") != want {
			t.Errorf("disk-%s was written to", d)
		}
	}
	l.ok(used.Close())
}

// TestStaticErased: what a volume held is on its device no more when the next one gets it, although the driver is killed
// in the middle of erasing; and it goes on where it was.
func TestStaticErased(t *testing.T) {
	l := staticLab(t, map[string]int64{"disk-one": 1200 * mib})
	l.again()
	secret := bytes.Repeat([]byte("SECRET--"), mib/8)
	id := l.must("old", 1200*mib, block())
	dev := l.up(id, block())
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	l.ok(err)
	for _, at := range []int64{0, 500 * mib, 1100 * mib, 1199 * mib} {
		_, err := f.WriteAt(secret, at)
		l.ok(err)
	}
	l.ok(errors.Join(f.Sync(), f.Close()))
	l.down(id)
	l.stop()
	l.start("csi.static.after_slice=1*kill")
	l.ok(l.remove(id))
	<-l.done
	if b, err := filepath.Glob(l.dir + "/pool/trash/*"); err != nil || len(b) != 1 {
		t.Fatalf("in the trash: %v, %v", b, err)
	} else if text, err := os.ReadFile(b[0]); err != nil || !strings.Contains(string(text), fmt.Sprintf(`"erased":%d`, 1024*mib)) {
		t.Errorf("its record: %s, %v", text, err)
	}
	f, err = os.Open(l.dir + "/disk-one.img")
	l.ok(err)
	got := make([]byte, mib)
	_, err = f.ReadAt(got, 1100*mib)
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("the end is erased before its time, %v", err)
	}
	l.ok(f.Close())
	l.again()
	id = l.must("new", 1200*mib, block())
	b, err := os.ReadFile(l.up(id, block()))
	if err != nil || len(b) != 1200*mib || bytes.Contains(b, []byte("SECRET")) {
		t.Errorf("old bytes are in the new volume of %d bytes, or %v", len(b), err)
	}
	l.down(id)
	l.ok(l.remove(id))
	l.empty()
}

// TestStaticFits: a volume gets the smallest device that it fits on and grows on it, not beyond; one may have as much as
// the largest one that is free; of many at once each gets a device of its own, or RESOURCE_EXHAUSTED.
func TestStaticFits(t *testing.T) {
	l := staticLab(t, map[string]int64{"disk-a": 200 * mib, "disk-b": 100 * mib, "disk-c": 50 * mib})
	l.again()
	left := func() int64 {
		r, err := l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
		l.ok(err)
		return r.GetAvailableCapacity()
	}
	if n := left(); n != 200*mib {
		t.Errorf("the largest has %d MiB", n/mib)
	}
	id := l.must("v", 60*mib, mounted(""))
	if at, _ := filepath.EvalSymlinks(l.dir + "/devices/disk-b"); l.claimed(id) != at {
		t.Errorf("it is on %s, not on %s", l.claimed(id), at)
	}
	p := l.up(id, mounted(""))
	l.ok(write(p+"/file", []byte("kept")))
	expand := func(size int64) error {
		_, err := l.ControllerExpandVolume(l.ctx(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
		return err
	}
	code(t, expand(101*mib), codes.OutOfRange, "beyond its device")
	l.ok(expand(100 * mib))
	if _, err := l.NodeExpandVolume(l.ctx(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: p}); err != nil && !canGrowExt4(t) {
		l.down(id)
		l.up(id, mounted(""))
	} else if err != nil {
		t.Error(err)
	}
	if n, err := fill(t, p+"/more"); n < 75*mib || n > 100*mib {
		t.Errorf("%d bytes went into 100 MiB, %v", n, err)
	}
	_, err := l.CreateSnapshot(l.ctx(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id})
	code(t, err, codes.FailedPrecondition, "no snapshots")
	_, err = l.create("clone", 100*mib, mounted(""), fromVolume(id))
	code(t, err, codes.InvalidArgument, "no clones")
	l.down(id)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []string
	for i := range 20 {
		wg.Go(func() {
			v, err := l.create(fmt.Sprintf("p%d", i), 20*mib, mounted(""), nil)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made = append(made, v.GetVolumeId())
			} else if status.Code(err) != codes.ResourceExhausted {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(made) != 2 || left() != 0 {
		t.Errorf("%d volumes on two devices, %d bytes are left", len(made), left())
	}
	for _, v := range append(made, id) {
		l.ok(l.remove(v))
	}
	l.empty()
	if n := left(); n != 200*mib {
		t.Errorf("the largest has %d MiB again", n/mib)
	}
}

// TestStaticSwapped: another device at a volume's path is not taken for it, and is not written to.
func TestStaticSwapped(t *testing.T) {
	l := staticLab(t, map[string]int64{"disk-a": 64 * mib})
	l.again()
	id := l.must("v", 64*mib, mounted(""))
	l.ok(write(l.up(id, mounted(""))+"/file", []byte("kept")))
	l.down(id)
	link := l.dir + "/devices/disk-a"
	node, err := os.Readlink(link)
	l.ok(err)
	l.ok(os.Remove(link))
	code(t, l.stage(id, mounted("")), codes.Unavailable, "is not there")
	other := l.addDisk("disk-a2", 64*mib)
	l.ok(os.Rename(l.dir+"/devices/disk-a2", link))
	code(t, l.stage(id, mounted("")), codes.Unavailable, "another device")
	_, err = l.NodeGetVolumeHealth(l.ctx(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
	code(t, err, codes.Unavailable, "another device")
	f, err := os.Open(other)
	l.ok(err)
	b := make([]byte, mib)
	_, err = f.ReadAt(b, 0)
	if err := errors.Join(err, f.Close()); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("the other device was written to, %v", err)
	}
	l.ok(os.Remove(link))
	l.ok(os.Symlink(node, link))
	if b, err := os.ReadFile(l.up(id, mounted("")) + "/file"); err != nil || string(b) != "kept" {
		t.Errorf("the file is %q, %v", b, err)
	}
	l.down(id)
	l.ok(l.remove(id))
	l.empty()
}
