package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// without stops the daemon, kills every shim and starts the daemon again: nothing of theirs holds what a pod needs.
func (n *node) without() {
	n.t.Helper()
	n.down()
	killed := 0
	for _, pid := range n.groups.Pids(n.own) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(comm)) != "berth-shim" {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			n.t.Fatal(err)
		}
		killed++
	}
	if killed == 0 {
		n.t.Fatal("no shim was there to be killed")
	}
	time.Sleep(100 * time.Millisecond) // containers write meanwhile, and nobody reads
	n.up()
}

// status is a container's state.
func (n *node) status(id string) ContainerState {
	n.t.Helper()
	c, err := n.Container(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return c.State()
}

// counting is a script that says a number a time, takes SIGTERM and exits with 9.
const counting = `trap 'echo bye; exit 9' TERM; i=0; while :; do echo $i; i=$((i+1)); usleep 3000; done`

// gapless looks that a log of counting has every number, once and in order, and then bye.
func gapless(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, l := range all {
		words := strings.Fields(l)
		if want := fmt.Sprint(i); len(words) != 4 || words[3] != want && (i != len(all)-1 || words[3] != "bye") {
			t.Fatalf("line %d of %d is %q", i, len(all), l)
		}
	}
	if !strings.HasSuffix(all[len(all)-1], "bye") || len(all) < 20 {
		t.Errorf("%d lines, the last is %q", len(all), all[len(all)-1])
	}
}

// TestRescue: the daemon and every shim are killed together. Pods with a container that runs go on, whatever namespaces they
// have: output, exec, exit codes and further containers. A pod without is lost.
func TestRescue(t *testing.T) {
	n := newNode(t)
	host := func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	pods := map[string]func(*cri.PodSandboxConfig){
		"plain": func(*cri.PodSandboxConfig) {}, "host": host,
		"shared": func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		},
		"user": func(c *cri.PodSandboxConfig) {
			maps := []*cri.IDMapping{{HostId: 1 << 20, Length: 1 << 16}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: maps, Gids: maps}
		},
		"ipc": func(c *cri.PodSandboxConfig) {
			host(c)
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
		},
	}
	ids, mains, pids, logs := map[string]string{}, map[string]string{}, map[string]int{}, map[string]string{}
	for name, change := range pods {
		conf := podConfig(name)
		conf.LogDirectory = filepath.Join(n.dir, "logs", name)
		change(conf)
		err := os.MkdirAll(conf.GetLogDirectory(), 0o755)
		if err != nil {
			t.Fatal(err)
		}
		if ids[name], err = n.Run(t.Context(), conf, ""); err != nil {
			t.Fatal(err)
		}
		c := containerConfig("main", "sh", "-c", counting)
		c.LogPath = "main.log"
		c.Linux.SecurityContext.NamespaceOptions = conf.GetLinux().GetSecurityContext().GetNamespaceOptions()
		if mains[name], err = n.Create(t.Context(), ids[name], c); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context(), mains[name]); err != nil {
			t.Fatal(err)
		}
		pids[name], logs[name] = n.status(mains[name]).Pid, filepath.Join(conf.GetLogDirectory(), "main.log")
	}
	empty := n.run("empty")
	ended := n.start(ids["plain"], "ended", "sh", "-c", "exit 3")
	n.await(ended)
	for range 3 { // the next shim is no different
		n.without()
	}
	for name, id := range mains {
		if st := n.status(id); st.CRI() != cri.ContainerState_CONTAINER_RUNNING || st.Pid != pids[name] {
			t.Fatalf("pod %s: its container is %v, process %d, was %d", name, st.CRI(), st.Pid, pids[name])
		}
		if p, err := n.Pod(ids[name]); err != nil || !p.State().Ready {
			t.Errorf("pod %s is not ready: %v", name, err)
		}
		late := n.start(ids[name], "late", "sh", "-c", "exit 5")
		if st := n.await(late); st.Exit.Code != 5 {
			t.Errorf("pod %s: a container that is started afterwards ends with %+v", name, st.Exit)
		}
		if err := n.StopContainer(t.Context(), id, 10*time.Second); err != nil {
			t.Error(err)
		}
		if st := n.await(id); st.Exit.Code != 9 || st.Exit.Unknown {
			t.Errorf("pod %s: its container ended with %+v", name, st.Exit)
		}
		gapless(t, logs[name])
	}
	if st := n.status(ended); st.Exit.Code != 3 {
		t.Errorf("what had ended before: %+v", st.Exit)
	}
	if p, err := n.Pod(empty); err != nil || p.State().Ready {
		t.Errorf("a pod without a process is ready, %v", err)
	}
}

// TestRescueBelievesNoOther: the process of a privileged container has entered other namespaces than its pod's. They are not taken
// for the pod's: another container's process shows the way, or there is none.
func TestRescueBelievesNoOther(t *testing.T) {
	n := newNode(t)
	start := func(pod, name string, command ...string) string {
		t.Helper()
		c := containerConfig(name, command...)
		c.Linux.SecurityContext.Privileged = true
		id, err := n.Create(t.Context(), pod, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	pod := func(name string) string {
		t.Helper()
		conf := podConfig(name)
		conf.Linux.SecurityContext.Privileged = true
		id, err := n.Run(t.Context(), conf, "")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	elsewhere := []string{"/bin/busybox", "unshare", "-u", "-i", "/bin/sleep", "1000"}
	alone, both := pod("alone"), pod("both")
	stray, strayToo, honest := start(alone, "stray", elsewhere...), start(both, "stray", elsewhere...), start(both, "honest", "/bin/sleep", "1000")
	link := func(id, kind string) string {
		t.Helper()
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.status(id).Pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
	for end := time.Now().Add(10 * time.Second); link(strayToo, "uts") == link(honest, "uts") || link(stray, "ipc") == link(honest, "ipc"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stray processes are in their pods' namespaces")
		}
	}
	n.without()
	if st := n.status(stray); st.CRI() != cri.ContainerState_CONTAINER_EXITED || !st.Exit.Unknown {
		t.Errorf("a pod's namespaces were taken from a process that is in others: %v", st.CRI())
	}
	for what, id := range map[string]string{"the stray": strayToo, "the honest": honest} {
		if st := n.status(id); st.CRI() != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s one is %v", what, st.CRI())
		}
	}
	late := start(both, "late", "/bin/sleep", "1000")
	for _, kind := range []string{"uts", "ipc"} {
		if got, want := link(late, kind), link(honest, kind); got != want {
			t.Errorf("a later container is in %s, its pod's is %s", got, want)
		}
	}
}
