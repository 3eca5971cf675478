package test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

const mib = 1 << 20

// fill writes until the volume is full and says how much went in.
func fill(t *testing.T, path string) (int64, error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it is full
	chunk := make([]byte, 1*mib)
	if _, err := rand.Read(chunk); err != nil {
		t.Fatal(err)
	}
	var n int64
	for n < 4<<30 {
		w, err := f.Write(chunk)
		n += int64(w)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

// TestLife: a volume is made, filled to its limit while its neighbour notices nothing, expanded, snapshotted, restored,
// cloned and deleted, and every copy has its bytes.
func TestLife(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 1200*mib, "")
		fs := ""
		a, b := l.must("a", 64*mib, mounted(fs)), l.must("b", 64*mib, mounted(fs))
		pa, pb := l.up(a, mounted(fs)), l.up(b, mounted(fs))
		n, err := fill(t, pa+"/big")
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || n > 64*mib || n < 45*mib {
			t.Errorf("%d bytes went into 64 MiB, then %v", n, err)
		}
		if err := os.WriteFile(pb+"/file", bytes.Repeat([]byte("b"), 8*mib), 0o600); err != nil {
			t.Errorf("the neighbour: %v", err)
		}
		stats, err := l.NodeGetVolumeStats(l.ctx(), &csi.NodeGetVolumeStatsRequest{VolumeId: a, VolumePath: pa})
		if u := stats.GetUsage()[0]; err != nil || u.GetTotal() > 64*mib || u.GetTotal() < 50*mib || u.GetAvailable() > 4*mib {
			t.Errorf("stats of a full volume: %v, %v", stats, err)
		}
		grow(t, l, a, pa, 128*mib)
		if k.copies() {
			snapshotAndRestore(t, l, a, pa)
		}
		l.down(a)
		l.down(b)
		code(t, l.remove("v00000000000000000000000000000000"), codes.OK, "")
		for _, id := range []string{a, b} {
			l.ok(l.remove(id))
		}
		l.empty()
	})
}

// grow expands a published volume. Growing a mounted ext4 takes CAP_SYS_RESOURCE, without which it grows at the next
// staging.
func grow(t *testing.T, l *lab, id, path string, size int64) {
	t.Helper()
	r, err := l.ControllerExpandVolume(l.ctx(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
	if err != nil || r.GetCapacityBytes() != size {
		t.Fatalf("expand: %v, %v", r, err)
	}
	if r.GetNodeExpansionRequired() {
		_, err := l.NodeExpandVolume(l.ctx(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
		if err != nil && !canGrowExt4(t) {
			code(t, err, codes.FailedPrecondition, "CAP_SYS_RESOURCE")
			l.down(id)
			l.up(id, mounted(""))
		} else if err != nil {
			t.Errorf("node expand: %v", err)
		}
	}
	if n, err := fill(t, path+"/more"); n < 50*mib || n > 70*mib {
		t.Errorf("%d more bytes after growing by 64 MiB, %v", n, err)
	}
	l.ok(os.Remove(path + "/more"))
}

func canGrowExt4(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := bytes.Cut(b, []byte("CapEff:\t"))
	var set uint64
	for _, c := range caps[:16] {
		d := uint64(bytes.IndexByte([]byte("0123456789abcdef"), c)) //nolint:gosec // a hexadecimal digit
		set = set<<4 | d
	}
	return set&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func snapshotAndRestore(t *testing.T, l *lab, id, path string) {
	t.Helper()
	before := sum(t, path+"/big")
	req := &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: id}
	s, err := l.CreateSnapshot(l.ctx(), req)
	if l.kind.atRest() { // no reflinks: not while it is used
		code(t, err, codes.FailedPrecondition, "end the pods that use it")
		l.down(id)
		s, err = l.CreateSnapshot(l.ctx(), req)
	}
	l.ok(err)
	again, err := l.CreateSnapshot(l.ctx(), req)
	if err != nil || again.GetSnapshot().GetSnapshotId() != s.GetSnapshot().GetSnapshotId() || !again.GetSnapshot().GetCreationTime().AsTime().Equal(s.GetSnapshot().GetCreationTime().AsTime()) {
		t.Errorf("the same snapshot again: %v, %v", again, err)
	}
	if l.kind.atRest() {
		l.up(id, mounted(""))
	}
	l.ok(os.WriteFile(path+"/big", []byte("overwritten"), 0o600))
	restored, err := l.create("restored", 192*mib, mounted(""), fromSnapshot(s.GetSnapshot().GetSnapshotId()))
	l.ok(err)
	if restored.GetContentSource().GetSnapshot().GetSnapshotId() != s.GetSnapshot().GetSnapshotId() {
		t.Errorf("restored from %v", restored.GetContentSource())
	}
	rid := restored.GetVolumeId()
	p := l.up(rid, mounted(""))
	if sum(t, p+"/big") != before {
		t.Error("the restored file differs from what it was")
	}
	most := int64(150 * mib)
	if l.kind.name == "btrfs" { // what it shares stays charged to its origin; the pool has reserved both
		most = 192 * mib
	}
	if n, err := fill(t, p+"/more"); n < 100*mib || n > most {
		t.Errorf("%d bytes went into a restored volume of 192 MiB with 60 in it, %v", n, err)
	}
	if l.kind.atRest() {
		l.down(rid)
	}
	clone, err := l.create("clone", 192*mib, mounted(""), fromVolume(rid))
	l.ok(err)
	c := l.up(clone.GetVolumeId(), mounted(""))
	if sum(t, c+"/big") != before {
		t.Error("the clone's file differs")
	}
	l.down(clone.GetVolumeId())
	if !l.kind.atRest() {
		l.down(rid)
	}
	for _, v := range []string{rid, clone.GetVolumeId()} {
		l.ok(l.remove(v))
	}
	_, err = l.DeleteSnapshot(l.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshot().GetSnapshotId()})
	l.ok(err)
}

func writeTo(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(alignedPage())
	return errors.Join(err, f.Close())
}

// alignedPage is memory that O_DIRECT takes.
func alignedPage() []byte {
	b := make([]byte, 8192)
	at := int(uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[4096-at : 8192-at]
}

// TestBlock: a raw block volume is as large as asked for, keeps its bytes, grows online, is read-only where it is
// published so, and ends with its device.
func TestBlock(t *testing.T) {
	for _, k := range blocks() {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 500*mib, "")
			id := l.must("raw", 32*mib, block())
			dev := l.up(id, block())
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			l.ok(err)
			end, err := f.Seek(0, io.SeekEnd)
			if err != nil || end != 32*mib && !k.whole() {
				t.Errorf("the device has %d bytes, %v", end, err)
			}
			data := bytes.Repeat([]byte("berth---"), 512)
			_, err = f.WriteAt(data, 16*mib)
			l.ok(errors.Join(err, f.Sync()))
			l.ok(l.publish(id, "-ro", block(), true))
			if err := writeTo(l.target(id, "-ro")); err == nil {
				t.Error("the read-only device can be written")
			}
			code(t, l.unstage(id), codes.FailedPrecondition, "published")
			r, err := l.ControllerExpandVolume(l.ctx(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 48 * mib}})
			if err != nil || r.GetNodeExpansionRequired() {
				t.Errorf("expand: %v, %v", r, err)
			}
			if end, err := f.Seek(0, io.SeekEnd); err != nil || end != 48*mib && !k.whole() {
				t.Errorf("after growing the device has %d bytes, %v", end, err)
			}
			l.ok(f.Close())
			l.ok(l.unpublish(id, "-ro"))
			l.ok(l.unpublish(id, ""))
			f, err = os.Open(l.device(id))
			l.ok(err)
			code(t, l.unstage(id), codes.FailedPrecondition, "still in use") // f has it open
			l.ok(f.Close())
			l.ok(l.unstage(id))
			if left := l.device(id); left != "" && !k.whole() {
				t.Errorf("a device is left: %v", left)
			}
			dev = l.up(id, block())
			got := make([]byte, len(data))
			f, err = os.Open(dev)
			l.ok(err)
			_, err = f.ReadAt(got, 16*mib)
			if err := errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the bytes are gone, %v", err)
			}
			l.down(id)
			l.ok(l.remove(id))
			l.empty()
		})
	}
}

// TestInline: a volume that the kubelet names itself is made at its target, has a limit and statistics, survives the
// driver, and ends with its target.
func TestInline(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		const handle = "csi-0123456789abcdef"
		target := l.dir + "/kubelet/inline"
		publish := func(attributes map[string]string) error {
			attributes["csi.storage.k8s.io/ephemeral"], attributes["csi.storage.k8s.io/pod.name"] = "true", "pod"
			_, err := l.NodePublishVolume(l.ctx(), &csi.NodePublishVolumeRequest{VolumeId: handle, TargetPath: target, VolumeCapability: mounted(""), VolumeContext: attributes})
			return err
		}
		code(t, publish(map[string]string{"size": "lots"}), codes.InvalidArgument, "volumeAttributes.size")
		code(t, publish(map[string]string{"path": "/"}), codes.InvalidArgument, "volumeAttributes.path is not allowed")
		code(t, publish(map[string]string{"size": "100Gi"}), codes.ResourceExhausted, "left to promise")
		l.ok(publish(map[string]string{"size": "32Mi"}))
		l.ok(publish(map[string]string{"size": "32Mi"}))
		if n, err := fill(t, target+"/big"); n > 32*mib || n < 15*mib {
			t.Errorf("%d bytes went into 32 MiB, %v", n, err)
		}
		s, err := l.NodeGetVolumeStats(l.ctx(), &csi.NodeGetVolumeStatsRequest{VolumeId: handle, VolumePath: target})
		if err != nil || s.GetUsage()[0].GetTotal() > 32*mib {
			t.Errorf("stats: %v, %v", s, err)
		}
		if list, err := l.ListVolumes(l.ctx(), &csi.ListVolumesRequest{}); err != nil || len(list.GetEntries()) > 0 {
			t.Errorf("an inline volume is listed: %v, %v", list, err)
		}
		l.stop()
		l.start("")
		for range 2 {
			_, err := l.NodeUnpublishVolume(l.ctx(), &csi.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: target})
			l.ok(err)
		}
		l.empty()
	})
}

// TestGroup: snapshots of several volumes are of one moment or are refused, and live and end together.
func TestGroup(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		if !k.copies() {
			return
		}
		l := newLab(t, k, 1200*mib, "")
		a, b := l.must("a", 64*mib, mounted("")), l.must("b", 64*mib, mounted(""))
		pa, pb := l.up(a, mounted("")), l.up(b, mounted(""))
		l.ok(errors.Join(write(pa+"/file", []byte("one")), write(pb+"/file", []byte("one"))))
		take := func() (*csi.CreateVolumeGroupSnapshotResponse, error) {
			return l.CreateVolumeGroupSnapshot(l.ctx(), &csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{a, b}})
		}
		g, err := take()
		if !k.liveGroups() { // two in use cannot be of one moment here
			code(t, err, codes.FailedPrecondition, "end the pods")
			l.down(b)
			l.down(a)
			g, err = take()
		}
		l.ok(err)
		members := g.GetGroupSnapshot().GetSnapshots()
		if len(members) != 2 || members[0].GetGroupSnapshotId() != g.GetGroupSnapshot().GetGroupSnapshotId() {
			t.Fatalf("members: %v", members)
		}
		_, err = l.DeleteSnapshot(l.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: members[0].GetSnapshotId()})
		code(t, err, codes.InvalidArgument, "member of group")
		r, err := l.create("r", 64*mib, mounted(""), fromSnapshot(members[1].GetSnapshotId()))
		l.ok(err)
		if got, err := os.ReadFile(l.up(r.GetVolumeId(), mounted("")) + "/file"); err != nil || string(got) != "one" {
			t.Errorf("the restored file is %q, %v", got, err)
		}
		l.down(r.GetVolumeId())
		if k.liveGroups() {
			l.down(a)
			l.down(b)
		}
		_, err = l.DeleteVolumeGroupSnapshot(l.ctx(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: g.GetGroupSnapshot().GetGroupSnapshotId()})
		l.ok(err)
		for _, id := range []string{a, b, r.GetVolumeId()} {
			l.ok(l.remove(id))
		}
		l.empty()
	})
}
