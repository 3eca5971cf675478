package test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// tuning is a setting that a pool's volumes have: one that differs from the default, or the default.
func tuning(k kind, other bool) map[string]string {
	switch {
	case !k.tunable():
		return nil
	case k.backend == "btrfs" && other:
		return map[string]string{"compression": "zstd"}
	case k.backend == "btrfs":
		return map[string]string{"compression": "none"}
	case other:
		return map[string]string{"readAheadKiB": "1024"}
	}
	return map[string]string{"readAheadKiB": "128"}
}

// tuned says whether a volume that is published at a path has that setting, as the kernel sees it.
func tuned(t *testing.T, l *lab, id, path string, other bool) bool {
	t.Helper()
	if !l.kind.tunable() {
		return true
	}
	if l.kind.backend == "btrfs" {
		b := make([]byte, 64)
		n, err := unix.Getxattr(path, "btrfs.compression", b)
		return err == nil && other == (string(b[:max(0, n)]) == "zstd") || err != nil && !other
	}
	want := map[bool]string{true: "1024", false: "128"}[other]
	return sysfs(t, l, id, "queue/read_ahead_kb") == want
}

// sysfs is an attribute of the loop device of a volume.
func sysfs(t *testing.T, l *lab, id, attribute string) string {
	t.Helper()
	for _, d := range l.loops() {
		if dev, file, _ := strings.Cut(d, " "); strings.Contains(file, id) {
			b, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/" + attribute)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(b))
		}
	}
	t.Fatalf("no device of %s", id)
	return ""
}

// TestModify: the settings of a volume change while it is used, all of a request or none, stay over staging and
// restart, and what a request does not name stays as it is.
func TestModify(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		modify := func(id string, set map[string]string) error {
			_, err := l.ControllerModifyVolume(l.ctx(), &csi.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: set})
			return err
		}
		r, err := l.CreateVolume(l.ctx(), &csi.CreateVolumeRequest{
			Name: "born", CapacityRange: &csi.CapacityRange{RequiredBytes: 32 * mib}, VolumeCapabilities: []*csi.VolumeCapability{mounted("")},
			MutableParameters: tuning(k, true),
		})
		l.ok(err)
		id := r.GetVolume().GetVolumeId()
		p := l.up(id, mounted(""))
		check := func(when string, other bool) {
			t.Helper()
			if !tuned(t, l, id, p, other) {
				t.Errorf("%s the setting is not as it should be (other: %v)", when, other)
			}
		}
		check("made with it,", true)
		l.ok(modify(id, tuning(k, false)))
		check("modified,", false)
		l.ok(modify(id, tuning(k, true)))
		l.ok(modify(id, map[string]string{}))
		check("after a request that names nothing,", true)
		bad := map[string]string{"iops": "100"}
		maps.Copy(bad, tuning(k, false))
		code(t, modify(id, bad), codes.InvalidArgument, "mutable_parameters.iops")
		for key := range tuning(k, false) {
			code(t, modify(id, map[string]string{key: "../x"}), codes.InvalidArgument, key)
		}
		check("after refused requests,", true)
		code(t, modify("v00000000000000000000000000000000", tuning(k, true)), codes.NotFound, "")
		l.down(id)
		l.stop()
		l.start("")
		l.up(id, mounted(""))
		check("staged again after a restart,", true)
		if k.backend == "loop" {
			l.ok(modify(id, map[string]string{"directIO": "false"}))
			check("after another setting,", true)
			if got := sysfs(t, l, id, "loop/dio"); got != "0" {
				t.Errorf("direct I/O is %s", got)
			}
		}
		l.down(id)
		l.ok(l.remove(id))
		l.empty()
	})
}
