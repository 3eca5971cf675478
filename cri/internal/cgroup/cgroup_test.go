package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

func ptr[T any](v T) *T { return &v }

// group makes a group of this test alone and removes it at the end, in every hierarchy.
func group(t *testing.T) (*Layout, string) {
	t.Helper()
	l, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/berth-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	if err := l.Ensure(path + "/leaf"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Kill(path), l.Remove(path)); err != nil {
			t.Error(err)
		}
		for _, m := range l.mounts() {
			if _, err := os.Stat(m + path); err == nil {
				t.Errorf("left behind: %s%s", m, path)
			}
		}
	})
	return l, path + "/leaf"
}

func TestLimitsReachTheFiles(t *testing.T) {
	l, path := group(t)
	if l.V2 {
		t.Skip("this table is the v1 one")
	}
	err := l.Set(path, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(33))},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"memory/memory.limit_in_bytes": "67108864", "cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "20000",
		"cpuset/cpuset.cpus": "0", "pids/pids.max": "33",
	} {
		ctrl, name, _ := strings.Cut(file, "/")
		b, err := os.ReadFile(filepath.Join(l.V1[ctrl], path, name))
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s = %q, %v; want %s", file, b, err, want)
		}
	}
}

func TestStartInsideAndKill(t *testing.T) {
	l, path := group(t)
	h, err := l.Open(path, path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(h.Unified.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if pids := l.Pids(path); len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("pids %v, want %d", pids, cmd.Process.Pid)
	}
	if err := l.Kill(path); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(5*time.Second, func() {
		t.Error("survived the kill")
		_ = cmd.Process.Kill()
	})
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	late.Stop()
	if err := errors.Join(l.Kill(path+"-gone"), l.Remove(path+"-gone")); err != nil {
		t.Errorf("absent group: %v", err)
	}
}

// The eBPF program is checked by the kernel's verifier and by opening devices, in the unified tree, which any
// layout has.
// TestUntouched: a group in which a process was, if only for a moment, is not untouched.
func TestUntouched(t *testing.T) {
	l, path := group(t)
	if l.Unified == "" {
		t.Skip("no unified tree (Linux 4.15)")
	}
	if !l.Untouched(path) {
		t.Error("a new group is touched")
	}
	h, err := l.Open(path, path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(h.Unified.Fd())}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if l.Untouched(path) {
		t.Error("a group in which a process was is untouched")
	}
	if l.Untouched(path + "/none") {
		t.Error("a group that is not there is untouched")
	}
}

func TestDeviceProgram(t *testing.T) {
	l, path := group(t)
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"},
		{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(5)), Access: "r"},
	}
	if err := attachDevices(l.Unified+path, compileDevices(rules)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(l.Unified + path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // test
	for script, ok := range map[string]bool{
		": >/dev/null": true, ": </dev/null": true, ": </dev/zero": true, ": >/dev/zero": false, ": </dev/full": false,
	} {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if out, err := cmd.CombinedOutput(); (err == nil) != ok {
			t.Errorf("%s: %v %s, want ok=%v", script, err, out, ok)
		}
	}
}

// TestDevicesAreDeniedByDefault: what no rule allows is denied, whether or not a rule says so first.
func TestDevicesAreDeniedByDefault(t *testing.T) {
	l, path := group(t)
	only := []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"}}
	if dir := l.V1["devices"]; dir != "" {
		if err := l.SetDevices(path, only); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(dir + path + "/devices.list"); err != nil || string(b) != "c 1:3 rwm\n" {
			t.Errorf("devices.list: %q, %v", b, err)
		}
	}
	if err := attachDevices(l.Unified+path, compileDevices(only)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(l.Unified + path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // test
	for script, ok := range map[string]bool{": >/dev/null": true, ": </dev/zero": false} {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if out, err := cmd.CombinedOutput(); (err == nil) != ok {
			t.Errorf("%s: %v %s, want ok=%v", script, err, out, ok)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, p := range []string{"/a/../../b", "..", "a\nb", "x\x00"} {
		if _, err := Clean(p); !errors.Is(err, errs.InvalidArgument) {
			t.Errorf("Clean(%q): %v", p, err)
		}
	}
	for _, k := range []string{"", "cgroup.procs", "../memory.max", "memory", "a/b.c"} {
		if ValidUnified(k) == nil {
			t.Errorf("unified key %q accepted", k)
		}
	}
	if (&Layout{}).Remove("/") == nil {
		t.Error("the root cgroup may be removed")
	}
}

func TestCompileV2(t *testing.T) {
	got := compileV2(&specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150))},
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(-1)), Period: ptr(uint64(50000))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(-1))},
		Unified: map[string]string{"memory.high": "90", "cpu.idle": "1"},
	})
	want := "[{memory memory.max 100 false} {memory memory.swap.max 50 true} {cpu cpu.weight 39 false} {cpu cpu.max max 50000 false} " +
		"{pids pids.max max false} {cpu cpu.idle 1 false} {memory memory.high 90 false}]"
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestQuotaV2: cpu.max has both values, so what is not said of one is written too.
func TestQuotaV2(t *testing.T) {
	for want, c := range map[string]*specs.LinuxCPU{
		"": {}, "max 50000": {Period: ptr(uint64(50000))}, "20000 100000": {Quota: ptr(int64(20000))},
		"20000 50000": {Quota: ptr(int64(20000)), Period: ptr(uint64(50000))}, "max 100000": {Quota: ptr(int64(-1))},
	} {
		if got := quotaV2(c); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	l := parse([]byte("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
		"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
		"42 31 0:38 /sub /somewhere rw - cgroup2 cgroup2 rw\n"))
	if fmt.Sprint(l.mounts()) != "[/sys/fs/cgroup/cpu,cpuacct /sys/fs/cgroup/systemd /sys/fs/cgroup/unified]" {
		t.Errorf("mounts %v", l.mounts())
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", unix.Getpid())); err != nil {
		t.Skip("no proc")
	}
}
