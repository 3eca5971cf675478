package cdi

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

var update = flag.Bool("update", false, "write the golden files")

// files are a few of a driver's, as Find lists them.
func files(root, libs, version string) driver.Files {
	lib := func(stem string, names ...string) driver.Library {
		file := "lib" + stem + ".so." + version
		return driver.Library{Host: filepath.Join(root, libs, file), Names: append(names, file)}
	}
	return driver.Files{
		Libraries: []driver.Library{lib("cuda", "libcuda.so", "libcuda.so.1"), lib("nvidia-ml", "libnvidia-ml.so.1"), lib("nvidia-ptxjitcompiler", "libnvidia-ptxjitcompiler.so.1")},
		Programs:  []driver.File{{Host: filepath.Join(root, "usr/bin/nvidia-smi"), Container: "/usr/bin/nvidia-smi"}},
		Firmware:  []driver.File{{Host: filepath.Join(root, "lib/firmware/nvidia", version, "gsp_tu10x.bin"), Container: "/lib/firmware/nvidia/" + version + "/gsp_tu10x.bin"}},
		Sockets:   []driver.File{{Host: filepath.Join(root, "run/nvidia-persistenced/socket"), Container: "/run/nvidia-persistenced/socket"}},
	}
}

func input(t *testing.T, profile, root, libs string) Input {
	t.Helper()
	src, err := fake.Open(profile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := src.Inventory(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if bad := n.Clean(); len(bad) > 0 {
		t.Fatal(bad)
	}
	m, err := src.Majors()
	if err != nil {
		t.Fatal(err)
	}
	return Input{Node: n, Majors: m, Files: files(root, libs, n.Driver.Version), Dev: "/dev"}
}

func TestGolden(t *testing.T) {
	graphics := input(t, "h100-mig", "/", "usr/lib/x86_64-linux-gnu")
	graphics.Graphics = true
	elsewhere := input(t, "h100x1", "/usr/local/nvidia", "lib64")
	elsewhere.Dev = "/run/nvidia/driver/dev"
	for name, in := range map[string]Input{
		"a100x4":           input(t, "a100x4", "/", "usr/lib/x86_64-linux-gnu"),
		"h100-mig":         input(t, "h100-mig", "/", "usr/lib/x86_64-linux-gnu"),
		"h100-graphics":    graphics,
		"driver-elsewhere": elsewhere,
	} {
		spec, err := Compile(in)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := Encode(spec)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(golden); err != nil || string(want) != string(got) {
			t.Errorf("%s is not what is compiled (%v): look at it, then go test ./deviceplugin/internal/cdi -update\n%s", golden, err, got)
		}
		invariants(t, name, spec)
	}
}

// invariants are what every specification of ours keeps.
func invariants(t *testing.T, name string, s *specs.Spec) {
	t.Helper()
	all := []specs.ContainerEdits{s.ContainerEdits}
	for _, d := range s.Devices {
		all = append(all, d.ContainerEdits)
	}
	paths := map[string]bool{}
	for _, e := range all {
		if len(e.Hooks) > 0 {
			t.Errorf("%s: a hook", name)
		}
		for _, m := range e.Mounts {
			if paths[m.ContainerPath] {
				t.Errorf("%s: %s is mounted twice", name, m.ContainerPath)
			}
			paths[m.ContainerPath] = true
			if !slices.Contains(m.Options, "ro") || !slices.Contains(m.Options, "nosuid") {
				t.Errorf("%s: %s with %v", name, m.ContainerPath, m.Options)
			}
		}
		for _, n := range e.DeviceNodes {
			if n.Major == 0 || n.Permissions != "rw" || !strings.HasPrefix(n.Path, "/dev/") {
				t.Errorf("%s: %+v", name, n)
			}
		}
	}
}

func TestNoCapsLeavesInstancesOut(t *testing.T) {
	in := input(t, "h100-mig", "/", "usr/lib64")
	in.Majors.Caps = 0
	spec, err := Compile(in)
	if err == nil || len(spec.Devices) != 2 {
		t.Errorf("%d devices, %v", len(spec.Devices), err)
	}
}

func TestEnsureVerify(t *testing.T) {
	dir, root := filepath.Join(t.TempDir(), "cdi"), t.TempDir()
	in := Input{Node: &inventory.Node{Driver: inventory.Driver{Version: "1.2"}}, Majors: driver.Majors{NVIDIA: 195, UVM: 510}, Dev: "/dev"}
	host := filepath.Join(root, "libcuda.so.1.2")
	in.Files.Libraries = []driver.Library{{Host: host, Names: []string{"libcuda.so.1"}}}
	spec, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if wrote, err := Ensure(dir, spec); err != nil || wrote != want {
			t.Fatal(i, wrote, err)
		}
	}
	view := func(p string) string {
		if rest, ok := strings.CutPrefix(p, "/dev/"); ok {
			return filepath.Join(root, rest)
		}
		return p
	}
	_, err = Verify(dir, view)
	for _, missing := range []string{"libcuda.so.1.2", "nvidiactl", "nvidia-uvm-tools"} {
		if err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("Verify does not miss %s: %v", missing, err)
		}
	}
	if err := os.WriteFile(host, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := driver.EnsureNodes(root, driver.CommonNodes(in.Majors, false)); err != nil {
		t.Fatal(err)
	}
	if broken, err := Verify(dir, view); err != nil || len(broken) != 0 {
		t.Error(broken, err)
	}
	if err := os.RemoveAll(dir); err != nil { // a reboot
		t.Fatal(err)
	}
	if wrote, err := Ensure(dir, spec); !wrote || err != nil {
		t.Error(wrote, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, FileName)); err != nil || fi.Mode().Perm() != 0o644 {
		t.Error(fi, err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	}
}
