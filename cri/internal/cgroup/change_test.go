package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/proto/errs"
)

// files are what a group's limits are in the kernel, by file.
func (l *Layout) files(t *testing.T, path string) map[string]string {
	t.Helper()
	names := []setting{
		{controller: "memory", file: "memory.limit_in_bytes"},
		{controller: "memory", file: "memory.memsw.limit_in_bytes"},
		{controller: "cpu", file: "cpu.shares"},
		{controller: "cpu", file: "cpu.cfs_quota_us"},
		{controller: "cpu", file: "cpu.cfs_period_us"},
		{controller: "cpuset", file: "cpuset.cpus"},
		{controller: "pids", file: "pids.max"},
	}
	if l.V2 {
		names = []setting{
			{controller: "memory", file: "memory.max"},
			{controller: "memory", file: "memory.swap.max"},
			{controller: "memory", file: "memory.high"},
			{controller: "cpu", file: "cpu.weight"},
			{controller: "cpu", file: "cpu.max"},
			{controller: "cpuset", file: "cpuset.cpus"},
			{controller: "pids", file: "pids.max"},
		}
	}
	all := map[string]string{}
	for _, s := range names {
		b, err := os.ReadFile(l.fileOf(path, s))
		if err != nil && (!errors.Is(err, os.ErrNotExist) || !strings.Contains(s.file, "sw")) { // a kernel without swap accounting
			t.Fatal(err)
		}
		all[s.file] = strings.TrimSpace(string(b))
	}
	return all
}

// limits are most of those that a container may have.
func limits(memory, swap, quota int64, shares uint64, cpus string) *specs.LinuxResources {
	return &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory, Swap: &swap},
		CPU:    &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: ptr(uint64(100000)), Cpus: cpus},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(50))},
	}
}

// TestChangeIsAllOrNothing: a limit that the kernel refuses takes those back that it took before, whatever they were: raised,
// lowered, or not set at all.
func TestChangeIsAllOrNothing(t *testing.T) {
	const no = "4000" // a CPU that is not there
	for name, first := range map[string]*specs.LinuxResources{"nothing was set": {}, "limits were set": limits(64<<20, 80<<20, 20000, 512, "0")} {
		for how, then := range map[string]*specs.LinuxResources{
			"raised": limits(128<<20, 256<<20, 40000, 1024, no), "lowered": limits(16<<20, 16<<20, 10000, 2, no), "lifted": limits(-1, -1, -1, 262144, no),
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				l, path := group(t)
				if err := l.Set(path, first); err != nil {
					t.Fatal(err)
				}
				before := l.files(t, path)
				if err := l.Change(path, then); err == nil || strings.Contains(err.Error(), "stays at") {
					t.Errorf("a CPU that is not there: %v", err)
				}
				if after := l.files(t, path); !maps.Equal(before, after) {
					t.Errorf("the limits were %v, are %v", before, after)
				}
				then.CPU.Cpus = "0"
				if err := l.Change(path, then); err != nil {
					t.Fatal(err)
				}
				after := l.files(t, path)
				if maps.Equal(before, after) || after["cpuset.cpus"] != "0" {
					t.Errorf("the limits are %v", after)
				}
				if err := errors.Join(l.Change(path, then), l.Change(path, nil)); err != nil || !maps.Equal(after, l.files(t, path)) {
					t.Errorf("again: %v", err)
				}
			})
		}
	}
}

// hold starts a process in a group that has size bytes of its own, and returns it when it has them.
func hold(t *testing.T, l *Layout, path string, size int) *exec.Cmd {
	t.Helper()
	h, err := l.Open(path, path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`read go; held=$(head -c %d /dev/zero | tr '\0' x); echo ready; read go`, size))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(h.Unified.Fd())}
	in, ierr := cmd.StdinPipe()
	out, oerr := cmd.StdoutPipe()
	if err := errors.Join(ierr, oerr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the group is removed
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := l.Move(path, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(in); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd
}

// TestMemoryInUse: a limit below what is in use is refused and kills nobody; one above is taken.
func TestMemoryInUse(t *testing.T) {
	l, path := group(t)
	if err := l.Set(path, limits(256<<20, 256<<20, 100000, 512, "0")); err != nil {
		t.Fatal(err)
	}
	cmd := hold(t, l, path, 32<<20)
	before := l.files(t, path)
	if err := l.Change(path, limits(16<<20, 16<<20, 10000, 2, "0")); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("less than is in use: %v", err)
	}
	if after := l.files(t, path); !maps.Equal(before, after) {
		t.Errorf("the limits were %v, are %v", before, after)
	}
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil || !slices.Contains(l.Pids(path), cmd.Process.Pid) {
		t.Errorf("the process is gone: %v", err)
	}
	if err := l.Change(path, limits(192<<20, 192<<20, 10000, 2, "0")); err != nil {
		t.Errorf("more than is in use: %v", err)
	}
}

// TestFits: what is in use may be as much as the limit.
func TestFits(t *testing.T) {
	if err := errors.Join(fits(0, 1), fits(5, 5)); err != nil {
		t.Error(err)
	}
	if err := fits(6, 5); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("%v", err)
	}
}
