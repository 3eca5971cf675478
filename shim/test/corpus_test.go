package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// shape is a spec of the corpus: see e2e/ocispecs, which writes it.
type shape struct {
	Join  []string    `json:"join"`
	PidOf bool        `json:"pidOf"`
	Spec  *specs.Spec `json:"spec"`
}

// corpus are the specs that berth-cri made in the conformance suite, ready to run the probe.
func corpus(t *testing.T) []*shape {
	t.Helper()
	b, err := os.ReadFile("testdata/specs.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []*shape
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		s.Spec.Root.Path = "rootfs"
		s.Spec.Process.Args = []string{"/bin/sh", "-c", probe}
		s.Spec.Process.Env = append(s.Spec.Process.Env, "PATH=/bin")
		s.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}} // the daemon's part
		keepHeld(t, s.Spec.Process.Capabilities)
	}
	return all
}

// keepHeld leaves out the capabilities that this machine does not give: runc then refuses the whole container.
func keepHeld(t *testing.T, c *specs.LinuxCapabilities) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	if data[0].Permitted&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return
	}
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable, &c.Ambient} {
		*set = slices.DeleteFunc(*set, func(name string) bool { return name == "CAP_SYS_RESOURCE" })
	}
}

// enter makes what the shape's containers find on their node: the pod with its namespaces, the volumes.
func (x *shape) enter(t *testing.T, s *shim) (join func(*ctr)) {
	t.Helper()
	for i := range x.Spec.Mounts {
		x.realise(t, &x.Spec.Mounts[i])
	}
	if len(x.Join) == 0 {
		return func(*ctr) {}
	}
	pod := v1.RunPod{ID: unique("pod"), Hostname: "corpus"}
	for _, kind := range x.Join {
		if kind == "user" {
			for _, m := range x.Spec.Linux.UIDMappings {
				pod.UIDMappings = append(pod.UIDMappings, v1.IDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
			}
			for _, m := range x.Spec.Linux.GIDMappings {
				pod.GIDMappings = append(pod.GIDMappings, v1.IDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
			}
			continue
		}
		pod.Namespaces = append(pod.Namespaces, kind)
	}
	if !slices.Contains(x.Join, "uts") {
		pod.Hostname = ""
	}
	var reply v1.RunPodReply
	fds := s.must(v1.MethodRunPod, pod, nil, &reply)
	t.Cleanup(func() {
		s.must(v1.MethodRemovePod, v1.PodRef{ID: pod.ID}, nil, nil)
		for _, f := range fds {
			_ = f.Close()
		}
	})
	return func(c *ctr) { c.start.Pod, c.start.Join = pod.ID, x.Join }
}

// realise gives a volume its source. One that is to propagate is a mount point of its own, shared.
func (x *shape) realise(t *testing.T, m *specs.Mount) {
	t.Helper()
	if m.Source != "dir" && m.Source != "file" {
		return // a device, or done
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // runc walks to it as a mapped root
		t.Fatal(err)
	}
	isDir := m.Source == "dir"
	m.Source = dir
	if !isDir {
		m.Source = filepath.Join(dir, "file")
		if err := os.WriteFile(m.Source, []byte("127.0.0.1 localhost\n"), 0o644); err != nil { //nolint:gosec // a volume
			t.Fatal(err)
		}
		return
	}
	if !slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "slave") }) {
		return
	}
	if err := unix.Mount("corpus", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
}
