package test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// tree is every path of the lab but for what changes by itself.
func (l *lab) tree() string {
	var b strings.Builder
	_ = filepath.WalkDir(l.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !strings.HasSuffix(path, "/log") {
			b.WriteString(path + "\n")
		}
		return nil
	})
	return b.String()
}

// TestBadInput: each request gets its code and a message that names the field, and nothing is touched.
func TestBadInput(t *testing.T) {
	l := newLab(t, kinds()[0], 500*mib, "")
	id := l.must("good", 16*mib, mounted(""))
	before := l.tree()
	create := func(change func(r *csi.CreateVolumeRequest)) error {
		r := &csi.CreateVolumeRequest{Name: "n", CapacityRange: &csi.CapacityRange{RequiredBytes: 16 * mib}, VolumeCapabilities: []*csi.VolumeCapability{mounted("")}}
		change(r)
		_, err := l.CreateVolume(l.ctx(), r)
		return err
	}
	long := strings.Repeat("x", 129)
	mode := func(m csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
		c := mounted("")
		c.AccessMode.Mode = m
		return c
	}
	flag := mounted("")
	flag.GetMount().MountFlags = []string{"context=system_u"}
	for _, c := range []struct {
		name   string
		change func(r *csi.CreateVolumeRequest)
		code   codes.Code
		field  string
	}{
		{"no name", func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name"},
		{"129 bytes", func(r *csi.CreateVolumeRequest) { r.Name = long }, codes.InvalidArgument, "name: 129 bytes"},
		{"NUL", func(r *csi.CreateVolumeRequest) { r.Name = "a\x00b" }, codes.InvalidArgument, "name"},
		{"newline", func(r *csi.CreateVolumeRequest) { r.Name = "a\nb" }, codes.InvalidArgument, "name"},
		{"no capability", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "volume_capabilities"},
		{"no access type", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessType = nil }, codes.InvalidArgument, "access_type"},
		{"many nodes", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = mode(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, codes.InvalidArgument, "access_mode"},
		{"block and mount", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = append(r.VolumeCapabilities, block()) }, codes.InvalidArgument, "contradict"},
		{"fs type", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = mounted("ntfs") }, codes.InvalidArgument, "fs_type"},
		{"mount flag", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = flag }, codes.InvalidArgument, "mount_flags"},
		{"parameter", func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"pol": "p"} }, codes.InvalidArgument, `parameters.pol is not known, nearest is "pool"`},
		{"pool", func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"pool": "../p"} }, codes.InvalidArgument, "parameters.pool"},
		{"mutable", func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"iops": "1"} }, codes.InvalidArgument, "mutable_parameters"},
		{"negative", func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, codes.InvalidArgument, "capacity_range"},
		{"more than there is", func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 1 << 50 }, codes.ResourceExhausted, "left to promise"},
		{"more than an int", func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = math.MaxInt64 }, codes.OutOfRange, "capacity_range"},
		{"limit below required", func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = mib }, codes.OutOfRange, "capacity_range"},
		{"limit below the least", func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{LimitBytes: 1} }, codes.OutOfRange, "limit_bytes"},
		{"unknown snapshot", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromSnapshot("../../etc") }, codes.NotFound, "snapshot"},
		{"unknown volume", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromVolume("v0") }, codes.NotFound, "volume"},
		{"smaller than its source", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource, r.CapacityRange.RequiredBytes = fromVolume(id), 8*mib
		}, codes.OutOfRange, "required_bytes"},
		{"other kind than its source", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource, r.VolumeCapabilities[0] = fromVolume(id), block()
		}, codes.InvalidArgument, "volume_content_source"},
		{"another node", func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"csi.berth.dev/node": "n2"}}}}
		}, codes.ResourceExhausted, "accessibility_requirements"},
		{"same name, other size", func(r *csi.CreateVolumeRequest) { r.Name, r.CapacityRange.RequiredBytes = "good", 32*mib }, codes.AlreadyExists, "capacity_range"},
	} {
		t.Run(c.name, func(t *testing.T) { code(t, create(c.change), c.code, c.field) })
	}
	badPaths(t, l, id)
	if after := l.tree(); after != before {
		t.Errorf("something was touched:\n%s\nwas\n%s", after, before)
	}
	l.ok(l.remove(id))
	l.empty()
}

// badPaths: node calls with paths that are not the kubelet's, or that a link leads elsewhere.
func badPaths(t *testing.T, l *lab, id string) {
	t.Helper()
	stage := func(path string, c *csi.VolumeCapability) error {
		_, err := l.NodeStageVolume(l.ctx(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: c})
		return err
	}
	for path, want := range map[string]codes.Code{
		"": codes.InvalidArgument, "relative": codes.InvalidArgument, "/etc": codes.InvalidArgument, l.dir + "/kubelet/../state": codes.InvalidArgument,
		l.dir + "/kubelet": codes.InvalidArgument, l.dir + "/kubelet/" + strings.Repeat("x/", 3000): codes.InvalidArgument, l.dir + "/kubelet/a\x00b": codes.InvalidArgument,
	} {
		if err := stage(path, mounted("")); err == nil {
			t.Errorf("staging at %.100q succeeds", path)
		} else {
			code(t, err, want, "path")
		}
	}
	code(t, stage(l.staging(id), block()), codes.FailedPrecondition, "volume_capability")
	code(t, stage(l.staging(id), nil), codes.InvalidArgument, "volume_capability")
	for _, bad := range []string{"../" + id, "x", "v" + strings.Repeat("0", 32), strings.Repeat("v", 129), "a\x00"} {
		want := codes.OK
		if len(bad) > 128 || strings.Contains(bad, "\x00") {
			want = codes.InvalidArgument
		}
		code(t, l.remove(bad), want, "")
	}
}

// TestLinksInPaths: a symbolic link in place of a staging path, a target or their parent leads nowhere.
func TestLinksInPaths(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		id := l.must("v", 32*mib, mounted(""))
		victim := l.dir + "/victim"
		l.ok(os.Mkdir(victim, 0o700))
		l.ok(os.WriteFile(victim+"/file", []byte("safe"), 0o600))
		l.ok(os.Symlink(victim, l.staging(id)))
		_, err := l.NodeStageVolume(l.ctx(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: l.staging(id), VolumeCapability: mounted("")})
		code(t, err, codes.InvalidArgument, "symbolic link")
		_, err = l.NodeStageVolume(l.ctx(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: l.staging(id) + "/file", VolumeCapability: mounted("")})
		code(t, err, codes.InvalidArgument, "symbolic link")
		code(t, l.unstage(id), codes.InvalidArgument, "symbolic link")
		l.ok(os.Remove(l.staging(id)))
		l.ok(l.unstage(id))
		l.ok(l.stage(id, mounted("")))
		l.ok(os.Symlink(victim, l.target(id, "")))
		code(t, l.publish(id, "", mounted(""), false), codes.InvalidArgument, "symbolic link")
		code(t, l.unpublish(id, ""), codes.InvalidArgument, "symbolic link")
		l.ok(os.Remove(l.target(id, "")))
		// A mount of somebody else's at the target is not ours to end.
		l.ok(os.Mkdir(l.target(id, ""), 0o700))
		l.command("mount", "--bind", victim, l.target(id, ""))
		code(t, l.publish(id, "", mounted(""), false), codes.FailedPrecondition, "something else")
		code(t, l.unpublish(id, ""), codes.FailedPrecondition, "something else")
		if b, err := os.ReadFile(l.target(id, "") + "/file"); err != nil || string(b) != "safe" {
			t.Errorf("the other's mount holds %q, %v", b, err)
		}
		l.command("umount", l.target(id, ""))
		l.ok(l.publish(id, "", mounted(""), false))
		// Nothing is deleted through a live mount.
		code(t, l.remove(id), codes.FailedPrecondition, "staged")
		l.down(id)
		l.ok(l.remove(id))
		l.empty()
	})
}
