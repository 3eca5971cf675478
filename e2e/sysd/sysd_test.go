package sysd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// TestDriver: the kubelet is told which driver to use, a pod is a delegated scope below its slice and the shim has a unit of
// its own, outside every pod's slice and the daemon's service.
func TestDriver(t *testing.T) {
	r, err := client.Runtime.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
	if err != nil || r.GetLinux().GetCgroupDriver() != cri.CgroupDriver_SYSTEMD {
		t.Errorf("the runtime's driver is %v, %v", r.GetLinux().GetCgroupDriver(), err)
	}
	p := runPod(t, "driver")
	if got := shows(t, p.scope(), "ActiveState", "Delegate", "TasksMax", "Description"); got != "Delegate=yes TasksMax=infinity Description=pod sysd/driver ActiveState=active" {
		t.Errorf("systemd says %s", got)
	}
	_, pid := p.container("one", &cri.LinuxContainerConfig{}, nil, "sleep", "1000")
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !strings.Contains(string(b), p.path()+"/") {
		t.Errorf("the container is in %s, %v; want below %s", b, err, p.path())
	}
	shims, err := harness.CgroupPids(lab.Group())
	if err != nil || len(shims) == 0 {
		t.Fatalf("shims %v, %v", shims, err)
	}
	for _, pid := range shims {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if want := lab.ShimPrefix(); err != nil || !strings.HasPrefix(string(b), "0::"+want) {
			t.Errorf("shim %d is in %s, %v; want %s…", pid, b, err, want)
		}
	}
	def := &pod{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	run, err := client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "none", Namespace: "sysd", Uid: "none"}}})
	if err != nil {
		t.Fatal(err)
	}
	def.id = run.GetPodSandboxId()
	if got := shows(t, def.scope(), "Slice"); got != "Slice=berth-sysd-pods.slice" {
		t.Errorf("a pod without a parent: %s", got)
	}
	if _, err := client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: def.id}); err != nil {
		t.Error(err)
	}
	if _, err := client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: def.id}); err != nil {
		t.Error(err)
	}
	_, err = client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "fs", Namespace: "sysd", Uid: "fs"}, Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/podfs"},
	}})
	if err == nil || !strings.Contains(err.Error(), "cgroupDriver must be systemd") {
		t.Errorf("a kubelet with the other driver is told %v", err)
	}
}

// limited are resources of which every one has a file to be read back.
func limited() *cri.LinuxContainerConfig {
	return &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, CpuQuota: 50_000, CpuPeriod: 100_000, CpuShares: 512, CpusetCpus: "0",
		Unified: map[string]string{"memory.high": "50331648", "memory.low": "1048576", "pids.max": "77", "memory.oom.group": "1"},
	}}
}

// facts are all that limits a container: what its files say, and what it may open.
func (p *pod) facts(id string) string {
	p.t.Helper()
	var b strings.Builder
	for _, f := range []string{"memory.max", "memory.high", "memory.low", "memory.oom.group", "cpu.max", "cpu.weight", "cpuset.cpus", "pids.max", "cgroup.subtree_control"} {
		text, err := os.ReadFile("/sys/fs/cgroup" + p.path() + "/" + id + "/" + f)
		fmt.Fprintf(&b, "%s=%s %v\n", f, strings.TrimSpace(string(text)), err)
	}
	fmt.Fprintf(&b, "pid=%d\n", p.pid(id))
	// kmsg was given to it; the memory (1:1) and the disk were not, whatever it makes itself
	b.WriteString(exec1(p.t, id, `echo hello >/dev/kmsg && echo kmsg opens; [ -c /tmp/mem ] || mknod /tmp/mem c 1 1; head -c 1 /tmp/mem; [ -b /tmp/disk ] || mknod /tmp/disk b 254 0; head -c 1 /tmp/disk; head -c 1 /dev/zero | wc -c`))
	return b.String()
}

// TestNothingIsTakenAway: whatever is done to systemd, a container keeps its limits, its devices and its process.
func TestNothingIsTakenAway(t *testing.T) {
	p := runPod(t, "kept")
	id, pid := p.container("one", limited(), []*cri.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/kmsg", Permissions: "rw"}}, "sleep", "1000")
	before := p.facts(id)
	t.Logf("\n%s", before)
	for _, want := range []string{"memory.max=67108864", "cpu.max=50000 100000", "cpuset.cpus=0 ", "pids.max=77", "memory.high=50331648", "kmsg opens", "/tmp/mem: Operation not permitted", "/tmp/disk: Operation not permitted", fmt.Sprintf("pid=%d", pid)} {
		if !strings.Contains(before, want) {
			t.Errorf("the container lacks %q", want)
		}
	}
	for what, do := range map[string][]string{
		"daemon-reload": {"daemon-reload"}, "daemon-reexec": {"daemon-reexec"},
		"the scope's weight":                 {"set-property", "--runtime", p.scope(), "CPUWeight=50"},
		"the scope's device policy":          {"set-property", "--runtime", p.scope(), "IOWeight=50", "MemoryMax=512M"},
		"the slice's memory":                 {"set-property", "--runtime", p.slice, "MemoryMax=1G", "TasksMax=500"},
		"the bus is started again":           {"restart", "dbus.service"},
		"the daemon is started again":        {"restart", unit},
		"failed units are reset":             {"reset-failed"},
		"another unit that wants no devices": {"start", "systemd-tmpfiles-clean.service"},
	} {
		for range 3 {
			if err := systemctl(do...); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if after := p.facts(id); after != before {
			t.Errorf("%s: the container has\n%s\nand had\n%s", what, after, before)
		}
	}
	// limits that change later are kept as well
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := client.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}}); err != nil {
		t.Fatal(err)
	}
	changed := p.facts(id)
	if err := systemctl("daemon-reload"); err != nil {
		t.Error(err)
	}
	if after := p.facts(id); after != changed || !strings.Contains(after, "memory.max=100663296") {
		t.Errorf("after an update and a reload the container has\n%s", after)
	}
	p2 := runPod(t, "after") // and systemd still makes scopes
	p2.container("one", &cri.LinuxContainerConfig{}, nil, "sleep", "1000")
}

// TestServiceEnds: however the unit ends, pods and their shims go on, and the next daemon has them.
func TestServiceEnds(t *testing.T) {
	p := runPod(t, "service")
	id, pid := p.container("one", &cri.LinuxContainerConfig{}, nil, "sh", "-c", "trap 'exit 9' TERM; i=0; while :; do echo line $i; i=$((i+1)); usleep 100000; done")
	shims, err := harness.CgroupPids(lab.Group())
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string][][]string{
		"stop": {{"stop", unit}, {"start", unit}}, "restart": {{"restart", unit}}, "SIGKILL": {{"kill", "-s", "KILL", "--kill-who=main", unit}},
		"SIGKILL to all of the unit": {{"kill", "-s", "KILL", unit}}, "stop, and daemon-reload while it is down": {{"stop", unit}, {"daemon-reload"}, {"start", unit}},
	} {
		for _, args := range do {
			if err := systemctl(args...); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if got := p.pid(id); got != pid {
				t.Fatalf("%s: after %v the container's process is %d, was %d", what, args, got, pid)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		if err := harness.Until(ctx, 100*time.Millisecond, nil, func() error {
			_, err := client.Runtime.Version(ctx, &cri.VersionRequest{})
			return err
		}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		cancel()
		if got := exec1(t, id, "echo works"); got != "works" {
			t.Errorf("%s: exec says %q", what, got)
		}
		now, err := harness.CgroupPids(lab.Group())
		if err != nil || !slices.Equal(now, shims) {
			t.Errorf("%s: shims are %v, were %v (%v)", what, now, shims, err)
		}
	}
	if got := shows(t, unit, "ActiveState", "Result"); got != "Result=success ActiveState=active" {
		t.Errorf("systemd says of the unit: %s", got)
	}
}

// TestOOM: the reason of a death by the limit is told although systemd clears away scopes that have ended: the holder keeps
// them until the count was read.
func TestOOM(t *testing.T) {
	p := runPod(t, "oom")
	for i := range 5 {
		id, _ := p.container(fmt.Sprint("hog", i), &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, Unified: map[string]string{"memory.oom.group": "1"}}}, nil, "memhog", "64")
		if st := end(t, id); st.GetReason() != "OOMKilled" || st.GetExitCode() != 137 {
			t.Errorf("%d: it ended with %d, %s", i, st.GetExitCode(), st.GetReason())
		}
	}
	if got := shows(t, p.scope(), "ActiveState", "SubState"); got != "ActiveState=active SubState=running" {
		t.Errorf("systemd says of the scope of a pod whose containers were killed: %s", got)
	}
}

// TestHolderKilled: the process that holds a pod's scope is killed; the next container has a scope again.
func TestHolderKilled(t *testing.T) {
	p := runPod(t, "holder")
	for _, running := range []bool{true, false} {
		var id string
		if running {
			id, _ = p.container("first", &cri.LinuxContainerConfig{}, nil, "sleep", "1000")
		}
		held, err := harness.CgroupPids(p.path() + "/hold")
		if err != nil || len(held) != 1 {
			t.Fatalf("holders %v, %v", held, err)
		}
		if out, err := exec.Command("kill", "-KILL", fmt.Sprint(held[0])).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err = harness.Until(ctx, 20*time.Millisecond, nil, func() error {
			if now, _ := harness.CgroupPids(p.path() + "/hold"); len(now) > 0 {
				return fmt.Errorf("the holder %v lives", now)
			}
			return nil
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		second, _ := p.container(fmt.Sprint("second", running), limited(), nil, "sleep", "1000")
		if got := exec1(t, second, "echo works"); got != "works" {
			t.Errorf("exec says %q", got)
		}
		if got := shows(t, p.scope(), "ActiveState"); got != "ActiveState=active" {
			t.Errorf("systemd says of the scope: %s", got)
		}
		for _, c := range []string{id, second} {
			if c == "" {
				continue
			}
			if _, err := client.Runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: c}); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestCost prints what systemd takes of a pod's start, and of its end.
func TestCost(t *testing.T) {
	const pods = 20
	var ends []time.Duration
	for i := range pods {
		p := runPod(t, fmt.Sprint("cost", i))
		begin := time.Now()
		if _, err := client.Runtime.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, time.Since(begin))
	}
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(lab.Run, "debug.sock"))
	}}}
	r, err := c.Get("http://debug/timeline")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close() //nolint:errcheck // read only
	var all map[string][]struct {
		Name string
		Took time.Duration
	}
	if err := json.NewDecoder(r.Body).Decode(&all); err != nil {
		t.Fatal(err)
	}
	phases := map[string][]time.Duration{}
	for _, p := range all {
		for _, ph := range p {
			phases[ph.Name] = append(phases[ph.Name], ph.Took)
		}
	}
	if len(phases["scope"]) < pods {
		t.Errorf("%d pods have a phase for their scope, want %d", len(phases["scope"]), pods)
	}
	for _, name := range []string{"files", "namespaces", "network", "scope"} {
		t.Logf("%-10s p50 %v of %d", name, median(phases[name]), len(phases[name]))
	}
	t.Logf("StopPodSandbox p50 %v", median(ends))
}

func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2].Round(10 * time.Microsecond)
}

// TestNothingLeft comes last: no unit, no process and no group of a pod is left, and no unit has failed.
func TestNothingLeft(t *testing.T) {
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "cri-berth-*", "kubepods-*-pod*").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("units are left: %s %v", out, err)
	}
	out, err = exec.Command("systemctl", "list-units", "--failed", "--plain", "--no-legend").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("units have failed: %s %v", out, err)
	}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range comms {
		if b, err := os.ReadFile(f); err == nil && string(b) == "berth-hold\n" {
			t.Errorf("%s is a holder", f)
		}
	}
}
