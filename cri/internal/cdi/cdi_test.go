package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

const good = `
cdiVersion: 0.6.0
kind: vendor.com/gpu
annotations: {gpu.berth-project/loader-directory: /usr/local/nvidia/lib64}
devices:
  - name: a
    containerEdits: {deviceNodes: [{path: /dev/gpu0, type: c, major: 195, minor: 3, permissions: rw}]}
  - name: b
    containerEdits: {deviceNodes: [{path: /dev/gpu1, hostPath: /dev/null}], additionalGids: [7, 0]}
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void, NEW=1]
  mounts:
    - {hostPath: /x/libcuda.so.5, containerPath: /usr/local/nvidia/lib64/libcuda.so.1, options: [ro, nosuid]}
    - {hostPath: /x/smi, containerPath: /usr/bin/smi, options: [ro]}
`

func dir(t *testing.T, files map[string]string) string {
	t.Helper()
	d := t.TempDir()
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(d, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestRequested(t *testing.T) {
	got, err := Requested([]string{"vendor.com/gpu=b", "vendor.com/gpu=a"},
		map[string]string{"cdi.k8s.io/z": "vendor.com/gpu=c,vendor.com/gpu=a", "cdi.k8s.io/a": "x.y/z=1", "other": "vendor.com/gpu=d"})
	if want := []string{"vendor.com/gpu=b", "vendor.com/gpu=a", "x.y/z=1", "vendor.com/gpu=c"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
	for _, name := range []string{"", "a=b", "vendor.com/gpu", "vendor.com/gpu=", "vendor.com/gpu=../x", "vendor.com/gpu=a\n", "/=a", "v/c=a/b"} {
		if _, err := Requested([]string{name}, nil); errs.Of(err) != errs.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestApply(t *testing.T) {
	d := dir(t, map[string]string{"gpu.yaml": good})
	r, err := New([]string{"/none", d}).Resolve([]string{"vendor.com/gpu=a", "vendor.com/gpu=b"})
	if err != nil {
		t.Fatal(err)
	}
	s := &oci.Spec{Process: &oci.Process{Env: []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all"}}, Linux: &oci.Linux{}, Mounts: []oci.Mount{{Destination: "/usr/bin/smi", Source: "/old"}}}
	if err := Apply(s, r); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Process.Env, []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void", "NEW=1"}) || !slices.Equal(s.Process.User.AdditionalGids, []uint32{7}) {
		t.Errorf("%+v", s.Process)
	}
	if len(s.Linux.Devices) != 2 || s.Linux.Devices[0].Minor != 3 || s.Linux.Devices[1].Major != 1 || s.Linux.Devices[1].Minor != 3 {
		t.Errorf("%+v", s.Linux.Devices)
	}
	var rules []string
	for _, x := range s.Linux.Resources.Devices {
		rules = append(rules, x.Type+x.Access)
	}
	if !slices.Equal(rules, []string{"crw", "crwm"}) {
		t.Error(rules)
	}
	if len(s.Mounts) != 2 || s.Mounts[0].Destination != "/usr/bin/smi" || s.Mounts[0].Source != "/x/smi" || !slices.Contains(s.Mounts[1].Options, "rbind") {
		t.Errorf("%+v", s.Mounts)
	}
	if l := Libraries(r); len(l) != 1 || l["libcuda.so.1"] != "/usr/local/nvidia/lib64/libcuda.so.1" {
		t.Error(l)
	}
}

func TestResolve(t *testing.T) {
	low, high := dir(t, map[string]string{"gpu.yaml": good}), dir(t, map[string]string{"gpu.json": strings.ReplaceAll(good, "minor: 3", "minor: 4")})
	r, err := New([]string{low, high}).Resolve([]string{"vendor.com/gpu=a"})
	if err != nil || r.Edits[1].DeviceNodes[0].Minor != 4 {
		t.Errorf("the later directory does not win: %+v %v", r, err)
	}
	twice := dir(t, map[string]string{"1.yaml": good, "2.yaml": good})
	if _, err := New([]string{twice}).Resolve([]string{"vendor.com/gpu=a"}); errs.Of(err) != errs.FailedPrecondition {
		t.Error("two files:", err)
	}
	if _, err := New([]string{low}).Resolve([]string{"vendor.com/gpu=zz"}); errs.Of(err) != errs.NotFound {
		t.Error(err)
	}
	if r, err := New([]string{twice}).Resolve(nil); err != nil || len(r.Edits) != 0 {
		t.Error("no names:", r, err)
	}
}

// TestHostile: whatever lies in the directory, a good file is used, and a bad one is named to who misses its device.
func TestHostile(t *testing.T) {
	d := dir(t, map[string]string{
		"good.yaml": good, "hook.yaml": strings.ReplaceAll(good, "vendor.com/gpu", "hook.com/gpu") + "  hooks: [{hookName: prestart, path: /bin/sh}]\n",
		"torn.json": `{"cdiVersion": "0.6.0", "kind": "to`, "unknown.yaml": strings.ReplaceAll(good, "vendor.com/gpu", "unknown.com/gpu") + "  surprise: 1\n",
		"path.yaml":     strings.ReplaceAll(strings.ReplaceAll(good, "vendor.com/gpu", "path.com/gpu"), "/usr/bin/smi", "/usr/../../etc/passwd"),
		"writable.yaml": strings.ReplaceAll(good, "vendor.com/gpu", "writable.com/gpu"), "note.txt": "no specification", ".hidden.yaml": "also none",
		"huge.json": strings.Repeat(" ", maxSpec+1),
	})
	if err := os.Chmod(filepath.Join(d, "writable.yaml"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(d, "pipe.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(d, "link.json")); err != nil {
		t.Fatal(err)
	}
	r := New([]string{d})
	if _, err := r.Resolve([]string{"vendor.com/gpu=a"}); err != nil {
		t.Error(err)
	}
	for vendor, want := range map[string]string{
		"hook": "hooks are not run", "unknown": "surprise", "path": "clean absolute containerPath", "writable": "written by others", "none": "torn.json",
	} {
		_, err := r.Resolve([]string{vendor + ".com/gpu=a"})
		if errs.Of(err) != errs.NotFound || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", vendor, err)
		}
	}
	if err := os.Chmod(d, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve([]string{"vendor.com/gpu=a"}); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Error("a directory anybody may write to:", err)
	}
}

func TestCheck(t *testing.T) {
	for text, want := range map[string]string{
		"cdiVersion: 9.0.0\nkind: a.b/c": "have 0.3 to 1.1",
		"cdiVersion: 0.6.0\nkind: a":     "want vendor/class",
		"cdiVersion: 0.6.0\nkind: a.b/c\ndevices: [{name: x, containerEdits: {}}, {name: x, containerEdits: {}}]": "there twice",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {env: ['=x']}":                                           "want NAME=value",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {deviceNodes: [{path: dev/x}]}":                          "clean absolute",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {deviceNodes: [{path: /dev/x, type: z}]}":                "have b, c, u, p",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {deviceNodes: [{path: /dev/x, permissions: rx}]}":        "have r, w, m",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {deviceNodes: [{path: /dev/x, major: -1}]}":              "numbers",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {deviceNodes: [null]}":                                   "empty device node",
		"cdiVersion: 0.6.0\nkind: a.b/c\ncontainerEdits: {mounts: [{hostPath: /x, containerPath: /}]}":            "clean absolute containerPath",
		"cdiVersion: 1.1.0\nkind: a.b/c\ncontainerEdits: {netDevices: [{hostInterfaceName: eth0, name: e}]}":      "netDevices are not moved",
		"cdiVersion: 0.7.0\nkind: a.b/c\ncontainerEdits: {intelRdt: {closID: x}}":                                 "intelRdt is not set",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"a.b/c","containerEdits":{"mounts":[null]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		r := Resolution{Edits: []specs.ContainerEdits{s.ContainerEdits}}
		for _, d := range s.Devices {
			r.Edits = append(r.Edits, d.ContainerEdits)
		}
		o := &oci.Spec{Process: &oci.Process{}, Linux: &oci.Linux{}}
		if err := Apply(o, r); err != nil {
			return // nodes that are not on this machine
		}
		for _, m := range o.Mounts {
			if !filepath.IsAbs(m.Destination) || strings.Contains(m.Destination, "..") && filepath.Clean(m.Destination) != m.Destination {
				t.Errorf("%+v", m)
			}
		}
		if o.Linux.Resources == nil {
			return
		}
		for _, d := range o.Linux.Resources.Devices {
			if d.Type == "" || d.Type == "a" || d.Major == nil || d.Minor == nil {
				t.Errorf("a rule for more than one device: %+v", d)
			}
		}
	})
}
