package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// The devices of the tests are ones that a container has not by default and that anybody may open: fuse (10:229)
// stands for a GPU that is given, tun (10:200) for one that is not.
const vendorSpec = `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
 "annotations": {"gpu.berth-project/loader-directory": "/usr/local/nvidia/lib64"},
 "devices": [{"name": "given", "containerEdits": {"deviceNodes": [{"path": "/dev/given", "type": "c", "major": 10, "minor": 229, "permissions": "rw", "fileMode": 438}]}},
  {"name": "other", "containerEdits": {"deviceNodes": [{"path": "/dev/other", "type": "c", "major": 10, "minor": 200, "permissions": "rw", "fileMode": 438}]}}],
 "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "mounts": [
  {"hostPath": %[1]q, "containerPath": "/usr/local/nvidia/lib64/libcuda.so.1", "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]},
  {"hostPath": %[1]q, "containerPath": "/usr/lib64/libcuda.so.1", "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}]}}`

func (n *node) vendor() {
	n.t.Helper()
	lib := filepath.Join(n.dir, "libcuda.so.580")
	err := errors.Join(os.Chmod(n.dir, 0o755), os.WriteFile(lib, []byte("driver"), 0o644), os.MkdirAll(n.cdiDir(), 0o755),
		os.WriteFile(filepath.Join(n.cdiDir(), "vendor.json"), fmt.Appendf(nil, vendorSpec, lib), 0o644))
	if err != nil {
		n.t.Fatal(err)
	}
}

// started makes and starts a container.
func (n *node) started(pod string, c *cri.ContainerConfig) string {
	n.t.Helper()
	id, err := n.Create(n.t.Context(), pod, c)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.Start(n.t.Context(), id); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) cdiDir() string { return filepath.Join(n.dir, "cdi") }

func (n *node) sh(id, script string) string {
	n.t.Helper()
	out, stderr, _, err := n.ExecSync(n.t.Context(), id, []string{"/bin/sh", "-c", script}, 10*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(out) + string(stderr))
}

// tryOpen says what opening a device of a number does, by a node that the container makes for itself.
func tryOpen(path string, major, minor int) string {
	return fmt.Sprintf("rm -f %[1]s; mknod %[1]s c %[2]d %[3]d && dd if=%[1]s of=/dev/null bs=1 count=0 2>&1 | grep -o 'Operation not permitted' || echo opened", path, major, minor)
}

// TestDevicesAreExact: a container opens what it was given and nothing else, however it gets a node and whatever
// its image says.
func TestDevicesAreExact(t *testing.T) {
	n := newNode(t)
	n.vendor()
	pod := n.run("gpu")
	with := containerConfig("with", "/bin/sleep", "100")
	with.CDIDevices = []*cri.CDIDevice{{Name: "vendor.com/gpu=given"}}
	with.Envs = append(with.Envs, &cri.KeyValue{Key: "NVIDIA_VISIBLE_DEVICES", Value: []byte("all")})
	without := containerConfig("without", "/bin/sleep", "100")
	without.Envs = append(without.Envs, &cri.KeyValue{Key: "NVIDIA_VISIBLE_DEVICES", Value: []byte("all")})
	annotated := containerConfig("annotated", "/bin/sleep", "100")
	annotated.Annotations = map[string]string{"cdi.k8s.io/plugin": "vendor.com/gpu=given"}
	for _, c := range []*cri.ContainerConfig{with, without, annotated} {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"MKNOD"}}
	}
	for _, c := range []struct {
		config *cri.ContainerConfig
		given  string
	}{{with, "opened"}, {annotated, "opened"}, {without, "Operation not permitted"}} {
		name := c.config.GetMetadata().GetName()
		id := n.started(pod, c.config)
		if got := n.sh(id, tryOpen("/tmp/given", 10, 229)); got != c.given {
			t.Errorf("%s: the given device: %q, want %q", name, got, c.given)
		}
		if got := n.sh(id, tryOpen("/tmp/other", 10, 200)); got != "Operation not permitted" {
			t.Errorf("%s: a device that is not given: %q", name, got)
		}
		if c.given != "opened" {
			if got := n.sh(id, "ls /dev/given /usr/local/nvidia 2>&1; echo $NVIDIA_VISIBLE_DEVICES"); strings.Count(got, "No such file") != 2 || !strings.HasSuffix(got, "all") {
				t.Errorf("%s: %s", name, got)
			}
			continue
		}
		if got := n.sh(id, "stat -c %t:%T /dev/given; ls /dev/other 2>&1; cat /usr/lib64/libcuda.so.1; echo; echo $NVIDIA_VISIBLE_DEVICES"); got != "a:e5\nls: /dev/other: No such file or directory\ndriver\nvoid" {
			t.Errorf("%s: %s", name, got)
		}
		if got := n.sh(id, "echo x > /usr/lib64/libcuda.so.1; ls /etc/ld.so.cache"); !strings.Contains(got, "Read-only") || !strings.Contains(got, "No such file") {
			t.Errorf("%s: the driver's library can be written to, or a cache came from nowhere: %s", name, got)
		}
	}
}

// TestLoaderCache: the image's cache with the driver's libraries in front, over the image's own.
func TestLoaderCache(t *testing.T) {
	n := newNode(t)
	n.vendor()
	own, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(n.images.layer, "etc/ld.so.cache")
	if err := os.WriteFile(at, own, 0o644); err != nil {
		t.Fatal(err)
	}
	pod := n.run("cache")
	config := func(name string) *cri.ContainerConfig {
		c := containerConfig(name, "/bin/sleep", "100")
		c.CDIDevices = []*cri.CDIDevice{{Name: "vendor.com/gpu=given"}}
		return c
	}
	id := n.started(pod, config("good"))
	if got := n.sh(id, "grep -c /usr/local/nvidia/lib64/libcuda.so.1 /etc/ld.so.cache; grep -c libc.so.6 /etc/ld.so.cache"); got != "1\n1" {
		t.Errorf("the cache: %q", got)
	}
	// a hostile image: its cache leads out of it, or is none
	for name, make := range map[string]func() error{
		"torn": func() error { return os.WriteFile(at, own[:60], 0o644) },
		"link": func() error { return os.Symlink("/etc/shadow", at) },
		"pipe": func() error { return unix.Mkfifo(at, 0o644) },
	} {
		if err := errors.Join(os.Remove(at), make()); err != nil { // removed first: who opens a pipe for writing waits for ever
			t.Fatal(err)
		}
		id := n.started(pod, config(name))
		if got := n.sh(id, "grep -c ' /etc/ld.so.cache ' /proc/self/mountinfo"); got != "0" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestInjectRefusals(t *testing.T) {
	n := newNode(t)
	n.vendor()
	pod := n.run("refusals")
	for name, want := range map[string]error{
		"vendor.com/gpu=none": errs.NotFound, "gpu": errs.InvalidArgument, "other.com/gpu=x": errs.NotFound,
	} {
		c := containerConfig("c", "/bin/true")
		c.CDIDevices = []*cri.CDIDevice{{Name: name}}
		if _, err := n.Create(t.Context(), pod, c); !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
