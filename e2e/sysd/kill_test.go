package sysd

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// end waits for a container's end.
func end(t *testing.T, id string) *cri.ContainerStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var st *cri.ContainerStatus
	if err := harness.Until(ctx, 20*time.Millisecond, nil, func() error {
		r, err := client.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if st = r.GetStatus(); err == nil && st.GetState() != cri.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("container %s is %v", id, st.GetState())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestShimKilled: containers live through the death of their shim and tell their exit code, though Linux 6.12 keeps none in
// a pidfd: the daemon has become their parent. That holds for shims that it has started itself.
func TestShimKilled(t *testing.T) {
	p := runPod(t, "shim")
	waits, _ := p.container("waits", &cri.LinuxContainerConfig{}, nil, "sh", "-c", "trap 'exit 9' TERM; while :; do usleep 50000; done")
	dies, pid := p.container("dies", &cri.LinuxContainerConfig{}, nil, "sleep", "1000")
	shims, err := harness.CgroupPids(lab.Group())
	if err != nil || len(shims) == 0 {
		t.Fatalf("shims %v, %v", shims, err)
	}
	for _, s := range shims {
		if err := syscall.Kill(s, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if got := exec1(t, waits, "echo works"); got != "works" {
		t.Errorf("exec after the shim's death says %q", got)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := end(t, dies); st.GetExitCode() != 137 || st.GetReason() != "Error" {
		t.Errorf("it was killed and ended with %d, %s", st.GetExitCode(), st.GetReason())
	}
	if _, err := client.Runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: waits, Timeout: 30}); err != nil {
		t.Error(err)
	}
	if st := end(t, waits); st.GetExitCode() != 9 {
		t.Errorf("it exits with 9 and ended with %d, %s", st.GetExitCode(), st.GetReason())
	}
}

// TestAgent: the agent's unit has what it needs under systemd's confinement: it attaches pods for the daemon, which starts no
// plugin; killed, it comes back, and pods keep what they have; while it is stopped pods are attached by executing the plugin.
func TestAgent(t *testing.T) {
	own := func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_POD
		c.DnsConfig = &cri.DNSConfig{}
	}
	executed := func() int {
		out, err := exec.Command("journalctl", "--no-pager", "-o", "cat", "-u", unit).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(out), "the plugin is executed")
	}
	first := runPod(t, "agent0", own)
	ip := address(t, first.id)
	id, _ := first.container("one", &cri.LinuxContainerConfig{}, nil, "sleep", "1000")
	if got := exec1(t, id, "ip -o -4 address show eth0"); !strings.Contains(got, ip.String()) {
		t.Errorf("the pod with %s has %s", ip, got)
	}
	if n := executed(); n != 0 {
		t.Errorf("the plugin was executed %d times beside an agent that serves", n)
	}
	for i, do := range []string{"restart", "kill"} {
		args := map[string][]string{"restart": {"restart", netUnit}, "kill": {"kill", "-s", "KILL", netUnit}}[do]
		if err := systemctl(args...); err != nil {
			t.Fatal(err)
		}
		p := runPod(t, fmt.Sprint("agent", i+1), own) // at once: by the agent, or without it
		second, _ := p.container("one", &cri.LinuxContainerConfig{}, nil, "sleep", "1000")
		if got := exec1(t, second, "ping -c 3 -W 5 "+ip.String()); !strings.Contains(got, " 0% packet loss") {
			t.Errorf("%s: a pod of before is reached so: %s", do, got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		if err := harness.Until(ctx, 50*time.Millisecond, nil, func() error {
			if got := shows(t, netUnit, "ActiveState", "SubState"); got != "ActiveState=active SubState=running" {
				return fmt.Errorf("%s: systemd says %s", do, got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		cancel()
	}
	if err := systemctl("stop", netUnit); err != nil {
		t.Fatal(err)
	}
	before := executed()
	without := runPod(t, "agent3", own)
	address(t, without.id)
	if n := executed(); n == before {
		t.Error("nothing says that the plugin is executed while the agent is stopped")
	}
	if err := systemctl("start", netUnit); err != nil {
		t.Fatal(err)
	}
	before = executed()
	again := runPod(t, "agent4", own)
	address(t, again.id)
	if n := executed(); n != before {
		t.Error("the plugin is executed though the agent serves again")
	}
}

// address is that of a pod.
func address(t *testing.T, id string) netip.Addr {
	t.Helper()
	r, err := client.Runtime.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	ip, err := netip.ParseAddr(r.GetStatus().GetNetwork().GetIp())
	if err != nil {
		t.Fatalf("the pod's address: %v", err)
	}
	return ip
}
