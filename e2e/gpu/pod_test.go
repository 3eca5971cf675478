package gpu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const (
	whole    = "GPU-be27f000-0000-4000-8000-000000000201"
	instance = "MIG-be27f000-0000-4000-8000-000007000000" // 1g.10gb of the first GPU
)

// seen is what a container sees that a device could change.
func seen(t *testing.T, p *harness.Pod) (devices, mounts, env []string) {
	t.Helper()
	list := func(s string) []string {
		all := strings.Split(s, "\n")
		slices.Sort(all)
		return all
	}
	devices = list(sh(t, p, `find /dev -type c -o -type b | while read f; do stat -c '%n %t:%T %a' $f; done`))
	mounts = list(sh(t, p, `awk '{split($6,o,","); print $5, o[1]}' /proc/self/mountinfo`))
	env = list(sh(t, p, "env"))
	return devices, mounts, env
}

// more lists what is in a and not in b.
func more(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// TestPodGetsItsDevice compares two pods that differ in their request alone: the difference is the specification's
// nodes, mounts and environment, and nothing else.
func TestPodGetsItsDevice(t *testing.T) {
	plain, with := apply(t, "plain", ""), apply(t, "with", resource+": 1")
	if ids := assigned(t, "with"); !slices.Equal(ids, []string{whole}) {
		t.Fatalf("the kubelet gave %v", ids)
	}
	d0, m0, e0 := seen(t, plain)
	d1, m1, e1 := seen(t, with)
	if got, want := more(d1, d0), []string{"/dev/nvidia-uvm 1fe:0 666", "/dev/nvidia-uvm-tools 1fe:1 666", "/dev/nvidia1 c3:1 666", "/dev/nvidiactl c3:ff 666"}; !slices.Equal(got, want) {
		t.Errorf("devices:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var want []string
	for _, p := range mountPaths() {
		want = append(want, p+" ro")
	}
	slices.Sort(want)
	if got := more(m1, m0); !slices.Equal(got, want) {
		t.Errorf("mounts:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := more(e1, e0), []string{"NVIDIA_DRIVER_VERSION=" + driverVersion, "NVIDIA_VISIBLE_DEVICES=void"}; !slices.Equal(slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "HOSTNAME=") }), want) {
		t.Errorf("environment: %v, want %v", got, want)
	}
	if gone := slices.Concat(more(d0, d1), more(m0, m1)); len(gone) > 0 {
		t.Errorf("missing beside a GPU: %v", gone)
	}
	if got := sh(t, with, "head -c 4 /usr/lib/x86_64-linux-gnu/libcuda.so.1 | tail -c 3; /usr/bin/nvidia-smi"); got != "ELFNVIDIA-SMI" {
		t.Errorf("the driver's files: %q", got)
	}
}

// TestUnallocated: the number of a GPU that was not given cannot be opened, by a node the container makes, with an
// environment that asks for all. A number that was given reaches the kernel, which has no such GPU here.
func TestUnallocated(t *testing.T) {
	plain, with := apply(t, "plain", ""), apply(t, "with", resource+": 1")
	try := func(p *harness.Pod, major, minor int) string {
		return sh(t, p, fmt.Sprintf("rm -f /tmp/n; mknod /tmp/n c %d %d && (: </tmp/n) 2>&1 | sed 's/.*: //'", major, minor))
	}
	for _, c := range []struct {
		pod          *harness.Pod
		name         string
		major, minor int
		want         string
	}{
		{with, "given", 195, 1, "No such device or address"},
		{with, "given", 195, 255, "No such device or address"},
		{with, "not given", 195, 0, "Operation not permitted"},
		{with, "not given", 511, 66, "Operation not permitted"},
		{plain, "not given", 195, 1, "Operation not permitted"},
		{plain, "not given", 195, 255, "Operation not permitted"},
		{plain, "not given", 510, 0, "Operation not permitted"},
	} {
		if got := try(c.pod, c.major, c.minor); got != c.want {
			t.Errorf("%s: %d:%d %s: %q, want %q", c.pod.Metadata.Name, c.major, c.minor, c.name, got, c.want)
		}
	}
}

// TestMIG: an instance is its GPU's node and two capabilities.
func TestMIG(t *testing.T) {
	p := apply(t, "mig", "nvidia.com/mig-1g.10gb: 1")
	if ids := assigned(t, "mig"); !slices.Equal(ids, []string{instance}) {
		t.Fatalf("the kubelet gave %v", ids)
	}
	got := sh(t, p, "cd /dev; ls -d nvidia* nvidia-caps/*")
	if want := "nvidia-caps\nnvidia-caps/nvidia-cap66\nnvidia-caps/nvidia-cap67\nnvidia-uvm\nnvidia-uvm-tools\nnvidia0\nnvidiactl"; strings.ReplaceAll(got, "nvidia-caps:\n", "") != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// TestRestarts: a container that is restarted while the plugin is dead, and after the specification was lost, has
// its device again; a kubelet that is restarted keeps the assignment.
func TestRestarts(t *testing.T) {
	apply(t, "keeps", resource+": 1")
	end := func(what string) {
		t.Helper()
		before, err := node.kubelet.Pod("keeps")
		if err != nil {
			t.Fatal(err)
		}
		_, id, _ := strings.Cut(before.Status.ContainerStatuses[0].ContainerID, "://")
		if _, err := node.client.Runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		p, err := node.kubelet.Await(t.Context(), "keeps", func(p *harness.Pod) bool {
			return p.Ready() && !strings.HasSuffix(p.Status.ContainerStatuses[0].ContainerID, id)
		})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := sh(t, p, "ls /dev/nvidia1"); got != "/dev/nvidia1" {
			t.Errorf("%s: %s", what, got)
		}
	}
	node.gpu.Kill()
	end("while the plugin is dead")
	if err := startPlugin(); err != nil {
		t.Fatal(err)
	}
	if err := awaitDevices(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(node.lab.CDI()); err != nil { // as a reboot does
		t.Fatal(err)
	}
	if err := harness.Until(t.Context(), 10*time.Millisecond, node.gpu, func() error {
		_, err := os.Stat(filepath.Join(node.lab.CDI(), "berth-gpu.json"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	end("after the specification was lost")
	if ids := assigned(t, "keeps"); !slices.Equal(ids, []string{whole}) {
		t.Errorf("the kubelet has %v for it", ids)
	}
}
