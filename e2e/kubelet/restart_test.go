package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const counter = `
terminationGracePeriodSeconds: 1
containers:
- name: count
  image: BUSYBOX
  command: [sh, -c, "i=0; while :; do echo line $i; i=$((i+1)); usleep 20000; done"]
  livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
  readinessProbe: {exec: {command: [sh, -c, "echo . >> /probes"]}, periodSeconds: 1}
`

// TestKubeletRestart: the kubelet's end and beginning are not noticed by a container.
func TestKubeletRestart(t *testing.T) {
	undisturbed(t, "kubelet-restart", func() {
		if err := node.kubelet.Stop(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		k, err := node.lab.StartKubelet(ctx, node.lab.Socket(), port)
		if err != nil {
			t.Fatal(err)
		}
		node.kubelet = k
	})
}

// TestDaemonRestart: nor is a restart of berth-cri.
func TestDaemonRestart(t *testing.T) {
	undisturbed(t, "daemon-restart", func() {
		if err := node.cri.Stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // the container writes on
		startDaemon(t)
	})
}

// TestDaemonKill: nor is its sudden death, five times.
func TestDaemonKill(t *testing.T) {
	undisturbed(t, "daemon-kill", func() {
		for range 5 {
			node.cri.Kill()
			startDaemon(t)
			time.Sleep(200 * time.Millisecond)
		}
	})
}

func startDaemon(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	start := time.Now()
	p, err := node.lab.RestartCRI(ctx, filepath.Join(node.lab.Run, "berth.toml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	node.cri = p
	if took := time.Since(start); took > time.Second {
		t.Errorf("berth-cri took %v to answer again", took)
	}
}

// undisturbed runs a container that counts, disturbs the node, and finds the same process with every line and its
// probes going on.
func undisturbed(t *testing.T, name string, disturb func()) {
	t.Helper()
	p := apply(t, name, counter)
	before := status(p.ready(), "count")
	proc := process(t, before.ContainerID)
	disturb()
	probes := func() int {
		b, err := node.kubelet.Run(mustPod(t, name), "count", "wc", "-l", "/probes")
		if err != nil {
			return 0
		}
		n, _ := strconv.Atoi(strings.Fields(b + " 0")[0])
		return n
	}
	p.await("the pod is ready again", (*harness.Pod).Ready)
	n := probes()
	if err := harness.Until(p.ctx, 100*time.Millisecond, nil, func() error {
		if now := probes(); now < n+2 {
			return fmt.Errorf("probes do not go on: %d, were %d", now, n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	seen := p.ready()
	after := status(seen, "count")
	if after.ContainerID != before.ContainerID || after.RestartCount != before.RestartCount {
		t.Errorf("the container was restarted: %+v, was %+v", after, before)
	}
	if now := process(t, after.ContainerID); now != proc {
		t.Errorf("the process is %s, was %s", now, proc)
	}
	consecutive(t, logFiles(t, name, "count"), true)
}

func mustPod(t *testing.T, name string) *harness.Pod {
	t.Helper()
	p, err := node.kubelet.Pod(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// process is a container's pid and start time.
func process(t *testing.T, id string) string {
	t.Helper()
	st, err := node.client.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: bare(id)})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.GetStatus().GetStartedAt(), " ", procOf(t, bare(id)))
}

// bare is a container id without the runtime's name ("berth://…").
func bare(id string) string {
	if _, after, ok := strings.Cut(id, "://"); ok {
		return after
	}
	return strings.Trim(id, "/")
}

// procOf finds the container's own process, the oldest in its cgroup.
func procOf(t *testing.T, id string) string {
	t.Helper()
	pids, err := harness.CgroupPids(node.lab.Cgroup())
	if err != nil {
		t.Fatal(err)
	}
	oldest, start := 0, uint64(0)
	for _, pid := range pids {
		group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(group), id) {
			continue
		}
		if st, err := harness.StartTime(pid); err == nil && (oldest == 0 || st < start) {
			oldest, start = pid, st
		}
	}
	if oldest != 0 {
		return fmt.Sprintf("pid %d started %d", oldest, start)
	}
	t.Fatalf("no process in the group of container %s", id)
	return ""
}
