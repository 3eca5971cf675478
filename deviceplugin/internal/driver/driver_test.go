package driver

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// library makes a real shared object.
func library(t *testing.T, file, soname string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"-shared", "-nostdlib", "-o", file, "-x", "c", "/dev/null"}
	if soname != "" {
		args = append(args, "-Wl,-soname,"+soname)
	}
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
}

func write(t *testing.T, file string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	libs := filepath.Join(dir, "usr/lib/x86_64-linux-gnu")
	library(t, filepath.Join(libs, "libcuda.so.580.1"), "libcuda.so.1")
	library(t, filepath.Join(libs, "libnvidia-ml.so.580.1"), "libnvidia-ml.so.1")
	library(t, filepath.Join(libs, "libcuda.so.570.1"), "libcuda.so.1") // another version's rest
	library(t, filepath.Join(libs, "libGLX_nvidia.so.580.1"), "libGLX_nvidia.so.0")
	library(t, filepath.Join(libs, "libnvidia-nvvm70.so.4"), "libnvidia-nvvm70.so.4")
	library(t, filepath.Join(libs, "vdpau/libvdpau_nvidia.so.580.1"), "libvdpau_nvidia.so.1")
	library(t, filepath.Join(dir, "usr/lib64/libcuda.so.580.1"), "libcuda.so.1") // the same again elsewhere
	link(t, "libnvidia-ml.so.580.1", filepath.Join(libs, "libnvidia-ml.so.1"))
	link(t, "libnvidia-ml.so.1", filepath.Join(libs, "libnvidia-ml.so"))
	link(t, "/etc/passwd", filepath.Join(libs, "libnvidia-cfg.so.580.1")) // leads out, were it not for the root
	write(t, filepath.Join(dir, "opt/nvidia-smi"))
	if err := os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	link(t, "/opt/nvidia-smi", filepath.Join(dir, "usr/bin/nvidia-smi")) // absolute: inside the root
	write(t, filepath.Join(dir, "lib/firmware/nvidia/580.1/gsp_ga10x.bin"))
	write(t, filepath.Join(dir, "etc/OpenCL/vendors/nvidia.icd"))
	write(t, filepath.Join(dir, "etc/vulkan/icd.d/nvidia_icd.json"))
	if err := os.MkdirAll(filepath.Join(dir, "run/nvidia-persistenced"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir) // a socket's path holds 107 bytes
	l, err := net.Listen("unix", "run/nvidia-persistenced/socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })

	f, err := Find(Root{Host: "/driver", View: dir}, "580.1", []Capability{Compute, Utility, Video})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range f.Libraries {
		got[l.Host] = filepath.Join(l.Sub, strings.Join(l.Names, " "))
	}
	at := "/driver/usr/lib/x86_64-linux-gnu/"
	for host, names := range map[string]string{
		at + "libcuda.so.580.1":               "libcuda.so libcuda.so.1 libcuda.so.580.1",
		at + "libnvidia-ml.so.580.1":          "libnvidia-ml.so libnvidia-ml.so.1 libnvidia-ml.so.580.1",
		at + "libnvidia-nvvm70.so.4":          "libnvidia-nvvm70.so.4",
		at + "vdpau/libvdpau_nvidia.so.580.1": "vdpau/libvdpau_nvidia.so.1 libvdpau_nvidia.so.580.1",
	} {
		if got[host] != names {
			t.Errorf("%s: %q, want %q", host, got[host], names)
		}
		delete(got, host)
	}
	if len(got) > 0 {
		t.Errorf("too many: %v", got)
	}
	if !slices.Equal(f.Programs, []File{{"/driver/opt/nvidia-smi", "/usr/bin/nvidia-smi"}}) || len(f.Firmware) != 1 || len(f.Config) != 1 || len(f.Sockets) != 1 {
		t.Errorf("%+v", f)
	}
	if _, err := Find(Root{Host: "/driver", View: dir}, "999.1", Capabilities()); err == nil || !strings.Contains(err.Error(), "driver.root") {
		t.Errorf("another version: %v", err)
	}
	if _, err := Find(Root{Host: "/driver", View: dir + "/none"}, "580.1", Capabilities()); err == nil || !strings.Contains(err.Error(), "driver.root") {
		t.Errorf("no root: %v", err)
	}
}

func TestFindRefusesWhatIsNoLibrary(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "lib64/libcuda.so.580.1"))
	if _, err := Find(Root{Host: dir, View: dir}, "580.1", Capabilities()); err == nil || !strings.Contains(err.Error(), "not a shared library") {
		t.Error(err)
	}
	library(t, filepath.Join(dir, "lib64/libcuda.so.580.1"), "../../x.so")
	if _, err := Find(Root{Host: dir, View: dir}, "580.1", Capabilities()); err == nil || !strings.Contains(err.Error(), "SONAME") {
		t.Error(err)
	}
}

const devices = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n510 nvidia-uvm\n511 nvidia-caps\n\nBlock devices:\n  8 nvidia\n"

func TestMajors(t *testing.T) {
	m, err := ParseMajors(strings.NewReader(devices))
	if err != nil || m != (Majors{195, 510, 511}) {
		t.Error(m, err)
	}
	if _, err := ParseMajors(strings.NewReader("Character devices:\nx y\n")); err == nil {
		t.Error("nonsense is taken")
	}
}

func TestEnsureNodes(t *testing.T) {
	dev := t.TempDir()
	m := Majors{195, 510, 511}
	stale := filepath.Join(dev, "nvidia-uvm")
	if err := unix.Mknod(stale, unix.S_IFCHR|0o600, int(unix.Mkdev(238, 0))); err != nil {
		t.Fatal(err)
	}
	nodes := append(CommonNodes(m, true), Node{"nvidia-caps/nvidia-cap3", m.Caps, 3})
	for range 2 {
		if err := EnsureNodes(dev, nodes); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		if err := CheckNode(filepath.Join(dev, n.Path), n); err != nil {
			t.Error(err)
		}
	}
	if fi, err := os.Stat(stale); err != nil || fi.Mode().Perm() != 0o666 {
		t.Error(fi, err)
	}
	if err := os.Remove(stale); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := EnsureNodes(dev, nodes); err == nil || !strings.Contains(err.Error(), "no character device") {
		t.Error("a file is replaced:", err)
	}
}
