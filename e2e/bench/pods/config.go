// Package pods drives a runtime through the CRI as a kubelet does and times each call. The same client code, with
// the same messages, drives every side. It must not know which runtime it talks to.
package pods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/images"
)

// Image has the workload, /bin/wait, a small static C program that ends on SIGTERM, /bin/true, and /bin/probe, which
// prints what a container sees.
const Image = images.BenchPod

// Runner makes pods on one runtime.
type Runner struct {
	Client *harness.Client
	Group  string // cgroup below which each pod gets its own, as a kubelet makes it
	Dir    string // for logs, hosts files, termination logs
	Shape  Shape  // of its pods

	given atomic.Uint32 // ranges of ids
}

// Shape is what a runner's pods differ in from a kubelet's plainest.
type Shape struct {
	Userns      bool // hostUsers: false
	HostNetwork bool
}

// ids gives each pod with user namespaces a range of its own, as a kubelet does: what the kernel allows a user (200 session
// keys, for one) would not do for a hundred pods of the same.
func (r *Runner) ids() uint32 { return (1000 + r.given.Add(1)%500) << 16 }

// With is a runner of the same runtime whose pods have another shape.
func (r *Runner) With(s Shape) *Runner {
	return &Runner{Client: r.Client, Group: r.Group, Dir: r.Dir, Shape: s}
}

// pod is what a kubelet has ready before it calls the runtime.
type pod struct {
	sandbox *cri.PodSandboxConfig
	group   string
	dir     string
	id      string
	shape   Shape
	ids     uint32
}

// The lists a kubelet sends for procMount: Default.
var (
	masked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

var seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}

// namespaces are a pod's as the kubelet has them: pid per container. The proto's default, POD, makes every runtime
// run an infra process. ids is the first of the host's that a pod with user namespaces has.
func (s Shape) namespaces(ids uint32) *cri.NamespaceOption {
	o := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	if s.HostNetwork {
		o.Network = cri.NamespaceMode_NODE
	}
	if s.Userns {
		ids := []*cri.IDMapping{{HostId: ids, ContainerId: 0, Length: 1 << 16}}
		o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return o
}

// prepare makes the cgroup and the files of a pod.
func (r *Runner) prepare(name string) (*pod, error) {
	p := &pod{group: r.Group + "/pod" + name, dir: filepath.Join(r.Dir, name), shape: r.Shape, ids: r.ids()}
	err := errors.Join(harness.MakeCgroup(p.group), os.MkdirAll(filepath.Join(p.dir, "logs"), 0o755))
	for _, f := range []string{"etc-hosts", "termination-log"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(p.dir, f), []byte("127.0.0.1 localhost\n"), 0o644))
	}
	p.sandbox = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "bench"},
		Hostname:     name,
		LogDirectory: filepath.Join(p.dir, "logs"),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"bench.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "bench", "io.kubernetes.pod.uid": "uid-" + name},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    p.group,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: r.Shape.namespaces(p.ids), Seccomp: seccomp},
			Resources:       limits(),
		},
	}
	if r.Shape.HostNetwork {
		p.sandbox.Hostname = "" // such a pod has the node's
	}
	return p, err
}

func limits() *cri.LinuxContainerResources {
	return &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 100000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
	}
}

func (p *pod) container(name string, command ...string) *cri.ContainerConfig {
	mount := func(in, file string) *cri.Mount {
		return &cri.Mount{ContainerPath: in, HostPath: filepath.Join(p.dir, file)}
	}
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: Image, UserSpecifiedImage: Image},
		Command:  command,
		Envs:     []*cri.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")}},
		Mounts:   []*cri.Mount{mount("/etc/hosts", "etc-hosts"), mount("/dev/termination-log", "termination-log")},
		Labels:   map[string]string{"io.kubernetes.container.name": name, "io.kubernetes.pod.uid": p.sandbox.GetMetadata().GetUid()},
		LogPath:  name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources: limits(),
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.shape.namespaces(p.ids), Seccomp: seccomp, NoNewPrivs: true, MaskedPaths: masked, ReadonlyPaths: readonly,
				Capabilities: &cri.Capability{DropCapabilities: []string{"NET_RAW"}},
			},
		},
	}
}

// clean removes what prepare made.
func (p *pod) clean() error {
	return errors.Join(harness.RemoveCgroup(p.group), os.RemoveAll(p.dir))
}

func (p *pod) errorf(step string, err error) error {
	return fmt.Errorf("%s of pod %s: %w", step, p.sandbox.GetMetadata().GetName(), err)
}
