package gpureal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/vm"
)

// packages are NVIDIA's driver as Debian packs it, of which a program that computes needs these.
func packages() []string {
	return []string{
		"libcuda1", "libcudadebugger1", "libnvidia-cfg1", "libnvidia-ml1", "libnvidia-nvvm4", "libnvidia-opticalflow1", "libnvidia-pkcs11-openssl3",
		"libnvidia-ptxjitcompiler1", "libnvcuvid1", "libnvidia-encode1", "libnvidia-allocator1", "nvidia-opencl-icd", "nvidia-cuda-mps", "nvidia-smi",
	}
}

// alternatives makes the links by which Debian puts one of several drivers in the loader's way: through /etc, so that they
// lead elsewhere unless they are followed inside the root.
func alternatives(root string) error {
	etc := filepath.Join(root, "etc/alternatives")
	err := os.MkdirAll(etc, 0o755)
	link := func(at, to string) {
		through := "nvidia--" + filepath.Base(at)
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, filepath.Dir(at)), 0o755), os.Symlink(to, filepath.Join(etc, through)), os.Symlink("/etc/alternatives/"+through, filepath.Join(root, at)))
	}
	link("usr/bin/nvidia-smi", "/usr/lib/nvidia/current/nvidia-smi")
	for _, l := range []string{"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvidia-cfg.so.1"} {
		link("usr/lib/x86_64-linux-gnu/"+l, "/usr/lib/x86_64-linux-gnu/nvidia/current/"+l)
	}
	return err
}

// driver is a root with the real driver's files and the version it has.
func driver(ctx context.Context, t *testing.T, cache string) (root, version string) {
	t.Helper()
	unpacked, err := vm.Packages(ctx, cache, vm.NonFree, packages()...)
	if err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(t.TempDir(), "driver")
	if out, err := exec.CommandContext(ctx, "cp", "-a", unpacked, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := alternatives(root); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(root, "usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.*.*"))
	if err != nil || len(all) != 1 {
		t.Fatalf("the driver is %v, %v", all, err)
	}
	return root, strings.TrimPrefix(filepath.Base(all[0]), "libcuda.so.")
}

// TestDriverFiles is real.sh with a profile in place of the GPU and the real driver's files, which Debian has: the
// specification that is made of them serves the real loader, the real nvidia-smi and the real CUDA, as far as the kernel,
// on Berth and on containerd alike.
func TestDriverFiles(t *testing.T) {
	bin, cache := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_DRIVERS")
	if bin == "" || cache == "" || os.Getenv("BERTH_TOOLS") == "" {
		t.Skip("BERTH_BIN, BERTH_TOOLS and BERTH_DRIVERS name no directories: use `make conformance-gpu`")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, version := driver(ctx, t, cache)
	work, out := t.TempDir(), t.TempDir()
	add, archive, profile := filepath.Join(work, "vectoradd"), filepath.Join(work, "cuda.tar"), filepath.Join(work, "h100.yaml")
	if out, err := exec.CommandContext(ctx, "gcc", "-O1", "-o", add, "../gpu/cuda/vectoradd.c", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := WriteImage(archive, "/bin/busybox", add); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../deviceplugin/internal/discovery/fake/profiles/h100x1.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Replace(b, []byte("version: 580.159.04"), []byte("version: "+version), 1)
	if bytes.Equal(text, b) {
		t.Fatal("the profile's driver has another version")
	}
	if err := os.WriteFile(profile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for name, tools := range map[string]string{"containerd": os.Getenv("BERTH_TOOLS"), "berth-cri": ""} {
		said.Reset()
		err = Run(ctx, Config{Bin: bin, Tools: tools, Out: out, Archive: archive, Driver: root, Fake: profile, Files: true}, &said)
		t.Logf("driver %s, %s\n%s", version, name, said.String())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec, err := os.ReadFile(filepath.Join(out, "cdi.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvidia-nvvm.so.4", "libnvidia-cfg.so.1", "libnvidia-opencl.so.1",
		"libcudadebugger.so.1", "libnvidia-allocator.so.1",
	} {
		if !bytes.Contains(spec, []byte(`"/usr/local/nvidia/lib64/`+want+`"`)) {
			t.Errorf("the specification lacks %s", want)
		}
	}
	for _, want := range []string{"nvidia-smi", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"} {
		if !bytes.Contains(spec, []byte(`"/usr/bin/`+want+`"`)) {
			t.Errorf("the specification lacks %s", want)
		}
	}
}

// TestNVML: the real library is loaded from the driver's root, and its own word is passed on.
func TestNVML(t *testing.T) {
	bin, cache := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_DRIVERS")
	if bin == "" || cache == "" {
		t.Skip("BERTH_BIN and BERTH_DRIVERS name no directories: use `make conformance-gpu`")
	}
	if _, err := os.Stat("/proc/driver/nvidia/version"); err == nil {
		t.Skip("a driver is loaded here: use e2e/gpu/real.sh")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	root, _ := driver(ctx, t, cache)
	dir := t.TempDir()
	conf := filepath.Join(dir, "gpu.toml")
	text := fmt.Sprintf("root = %q\nstate = %q\ndebug_socket = %q\ndiscovery = \"auto\"\n[driver]\nroot = %q\n", dir+"/root", dir+"/state", dir+"/debug.sock", root)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "berth-gpu"), "--config", conf, "inventory").CombinedOutput()
	for _, want := range []string{"nvmlInit: Driver Not Loaded (NVML 9)", "the NVIDIA kernel module is not loaded"} {
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("it says %q, %v; want %q", out, err, want)
		}
	}
}
