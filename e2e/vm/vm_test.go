package vm_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/vm"
)

// TestGuest boots a guest that says what it is.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	cache := os.Getenv("BERTH_VM")
	if cache == "" {
		t.Skip("BERTH_VM does not name a directory for kernels: use `make test-vm`")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	begin := time.Now()
	r, err := vm.Run(ctx, vm.Machine{
		Cache: cache, Work: t.TempDir(), MemoryMB: 512, DiskMB: 400, CPUs: 2,
		Command: []string{"/bin/busybox", "sh", "-c", "uname -r; cat /sys/fs/cgroup/cgroup.controllers /sys/kernel/security/lsm; echo; modprobe overlay && grep -c overlay /proc/filesystems; echo kept >/vm/out/file; exit 7"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v\n%s", time.Since(begin), r.Output)
	if r.Exit != 7 {
		t.Errorf("exit code %d, want 7", r.Exit)
	}
	for _, want := range []string{"6.12.", "memory", "apparmor", "\n1\n"} {
		if !strings.Contains(r.Output, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if b, err := os.ReadFile(r.Out + "/out/file"); err != nil || string(b) != "kept\n" {
		t.Errorf("what the guest wrote came back as %q, %v", b, err)
	}
}

// TestSystemd boots a guest whose process 1 is systemd, on cgroup v2, with a bus that answers.
func TestSystemd(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	cache := os.Getenv("BERTH_VM")
	if cache == "" {
		t.Skip("BERTH_VM does not name a directory for kernels: use `make test-vm`")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	begin := time.Now()
	r, err := vm.Run(ctx, vm.Machine{
		Cache: cache, Work: t.TempDir(), MemoryMB: 768, DiskMB: 700, CPUs: 2, Systemd: true,
		Command: []string{"/bin/busybox", "sh", "-c", "cat /proc/1/comm /proc/self/cgroup; busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer Ping && echo pong; systemctl is-system-running; systemctl --failed --no-legend; cut -d' ' -f1 /proc/uptime; echo kept >/vm/out/file; exit 7"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v\n%s", time.Since(begin), r.Output)
	if r.Exit != 7 {
		t.Errorf("exit code %d, want 7", r.Exit)
	}
	for _, want := range []string{"systemd\n", "0::/system.slice/vm.service\n", "pong\n"} {
		if !strings.Contains(r.Output, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if b, err := os.ReadFile(r.Out + "/out/file"); err != nil || string(b) != "kept\n" {
		t.Errorf("what the guest wrote came back as %q, %v", b, err)
	}
}
