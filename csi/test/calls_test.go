package test

import (
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

func mounted(fstype string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fstype}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

func block() *csi.VolumeCapability {
	c := mounted("")
	c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	return c
}

func (l *lab) create(name string, size int64, c *csi.VolumeCapability, from *csi.VolumeContentSource) (*csi.Volume, error) {
	r, err := l.CreateVolume(l.ctx(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapabilities: []*csi.VolumeCapability{c}, VolumeContentSource: from,
	})
	return r.GetVolume(), err
}

func (l *lab) must(name string, size int64, c *csi.VolumeCapability) string {
	l.t.Helper()
	v, err := l.create(name, size, c, nil)
	l.ok(err)
	return v.GetVolumeId()
}

func (l *lab) staging(id string) string   { return l.dir + "/kubelet/staging-" + id }
func (l *lab) target(id, n string) string { return l.dir + "/kubelet/target-" + id + n }

func (l *lab) stage(id string, c *csi.VolumeCapability) error {
	if err := os.Mkdir(l.staging(id), 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	_, err := l.NodeStageVolume(l.ctx(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: l.staging(id), VolumeCapability: c})
	return err
}

func (l *lab) publish(id, n string, c *csi.VolumeCapability, readOnly bool) error {
	_, err := l.NodePublishVolume(l.ctx(), &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: l.staging(id), TargetPath: l.target(id, n), VolumeCapability: c, Readonly: readOnly,
	})
	return err
}

func (l *lab) unpublish(id, n string) error {
	_, err := l.NodeUnpublishVolume(l.ctx(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: l.target(id, n)})
	return err
}

func (l *lab) unstage(id string) error {
	_, err := l.NodeUnstageVolume(l.ctx(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: l.staging(id)})
	return err
}

func (l *lab) remove(id string) error {
	_, err := l.DeleteVolume(l.ctx(), &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// up stages and publishes.
func (l *lab) up(id string, c *csi.VolumeCapability) string {
	l.t.Helper()
	l.ok(l.stage(id, c))
	l.ok(l.publish(id, "", c, false))
	return l.target(id, "")
}

// down is the end of a volume in use.
func (l *lab) down(id string) {
	l.t.Helper()
	l.ok(l.unpublish(id, ""))
	l.ok(l.unstage(id))
}

// empty proves that all storage is gone: no volume, no snapshot, no orphan, nothing in the trash.
func (l *lab) empty() {
	l.t.Helper()
	if l.kind.backend == "lvm" {
		l.groupEmpty()
	} else {
		l.poolEmpty()
	}
	l.waitForDisks()
	out, err := exec.Command(program, "--config", l.conf, "orphans").CombinedOutput()
	if err != nil || strings.Count(string(out), "\n") != 1 {
		l.t.Errorf("orphans: %v: %s", err, out)
	}
}

func (l *lab) poolEmpty() {
	l.t.Helper()
	for _, sub := range []string{"volumes", "snapshots", "building", "trash"} {
		var names []os.DirEntry
		for range 100 {
			names, _ = os.ReadDir(l.poolDir() + "/" + sub)
			if len(names) == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		for _, n := range names {
			l.t.Errorf("left in the pool: %s/%s", sub, n.Name())
		}
	}
}

// device is the path of the last device of a volume that is attached, "" if there is none.
func (l *lab) device(id string) (path string) {
	switch l.kind.backend {
	case "lvm":
		return l.logical(id)
	case "static":
		return l.claimed(id)
	}
	for _, d := range l.loops() {
		if dev, file, _ := strings.Cut(d, " "); strings.Contains(file, id) {
			path = dev
		}
	}
	return path
}

func (l *lab) poolDir() string {
	if l.kind.fs == "" {
		return l.dir + "/pool"
	}
	return l.dir + "/pool/p"
}
