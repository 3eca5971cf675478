package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/vm"
)

// TestGPUDevices is e2e/gpu/real.sh with a profile, on cgroup v2: the device program lets a container open what it
// was given and nothing else.
func TestGPUDevices(t *testing.T) {
	cache, bin := os.Getenv("BERTH_VM"), os.Getenv("BERTH_BIN")
	if cache == "" {
		t.Skip("BERTH_VM does not name a directory for kernels: use `make conformance-vm`")
	}
	work := t.TempDir()
	run := func(dir, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	at := func(name string) string { return filepath.Join(work, name) }
	run("../..", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", at("berth-gpu"), "./deviceplugin/cmd/berth-gpu") // static: it has a profile, not NVML
	run("..", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", at("gpureal"), "./cmd/gpureal")
	run(".", "gcc", "-O1", "-o", at("vectoradd"), "../gpu/cuda/vectoradd.c", "-ldl")
	run(".", at("gpureal"), "image", at("cuda.tar"), "/bin/busybox", at("vectoradd"))
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var disk string
	if disk = at("disk"); os.Mkdir(disk, 0o700) != nil {
		t.Fatal("no directory for the disk")
	}
	m := vm.Machine{
		Cache: cache, Work: disk, MemoryMB: 2048, DiskMB: 1000, CPUs: 2, Programs: []string{"ip", "nft"},
		Files:   map[string]string{"/vm/gpureal": at("gpureal"), "/berth/bin/berth-gpu": at("berth-gpu"), "/berth/bin/cuda.tar": at("cuda.tar")},
		Command: []string{"/vm/gpureal", "run", "--bin", "/berth/bin", "--out", "/vm/out", "--archive", "/berth/bin/cuda.tar", "--fake", "h100-mig"},
		Output:  os.Stderr,
	}
	for _, p := range []string{"berth-cri", "berth-shim"} {
		m.Files["/berth/bin/"+p] = filepath.Join(bin, p)
	}
	r, err := vm.Run(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if r.Exit != 0 || !strings.Contains(r.Output, "ok    without a request nothing opens") || !strings.Contains(r.Output, "ok    it may open each node it was given") {
		t.Errorf("it ends with %d in the guest:\n%s", r.Exit, r.Output)
	}
}
