package kubelet

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/berth-project/berth/e2e/harness"
)

// TestSystemdSlices: the kubelet's pod is a slice, its containers lie in our scope below it, and what the kubelet limits
// holds for them. Where systemd is not process 1 there are no slices.
func TestSystemdSlices(t *testing.T) {
	if !node.lab.Systemd() {
		t.Skip("process 1 is not systemd: `make conformance-vm` runs this in a guest")
	}
	p := apply(t, "slices", `
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "cat /proc/self/cgroup; sleep 1000"]
  resources: {limits: {memory: 48Mi, cpu: 200m}}
`)
	p.ready()
	c := p.containers(t)
	if len(c) != 1 {
		t.Fatalf("%d containers", len(c))
	}
	id, pod := c[0].GetId(), c[0].GetPodSandboxId()
	out, err := exec.Command("systemctl", "show", "-p", "ControlGroup", "--value", "cri-berth-"+pod+".scope").Output()
	if err != nil {
		t.Fatal(err)
	}
	scope := strings.TrimSpace(string(out))
	if !strings.HasPrefix(scope, "/kubepods.slice/kubepods-pod") {
		t.Errorf("the pod's scope is at %q, want it in a slice of the kubelet's", scope)
	}
	pids, err := harness.CgroupPids(scope + "/" + id)
	if err != nil || len(pids) == 0 {
		t.Errorf("no process of container %s is in %s: %v", id, scope, err)
	}
	for file, want := range map[string]string{
		scope + "/" + id + "/memory.max": "50331648", scope + "/../memory.max": "50331648", scope + "/../cpu.max": "20000 100000",
	} {
		if b, err := os.ReadFile("/sys/fs/cgroup" + file); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %s, %v; want %s", file, fmt.Sprintf("%q", b), err, want)
		}
	}
}
