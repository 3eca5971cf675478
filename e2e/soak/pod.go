package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// sort is a kind of pod.
type sort struct {
	name   string
	host   bool // the node's network
	mapped bool // user namespaces
	probes int  // ExecSync, as a kubelet's probes
}

var (
	plain  = sort{name: "plain", probes: 1}
	probed = sort{name: "probed", probes: 5}
	host   = sort{name: "host", host: true, probes: 1}
	mapped = sort{name: "mapped", mapped: true, probes: 1}
)

// ranges of 65,536 host ids that pods with user namespaces get in turn, as a kubelet gives each its own: what the kernel
// allows a user (keys, for one) is each pod's own then.
const (
	ranges     = 500
	firstRange = 2000
)

// mix is what comes when: of ten pods one on the node's network, two with user namespaces, two with many probes.
func mix(i int) sort {
	return []sort{plain, mapped, plain, probed, host, plain, mapped, plain, probed, plain}[i%10]
}

// pod is a pod as its client knows it.
type pod struct {
	n      *node
	sort   sort
	ids    uint32 // the first of its ids on the node
	config *cri.PodSandboxConfig
	id     string
}

func (n *node) pod(name string, s sort) *pod {
	p := &pod{n: n, sort: s, ids: (firstRange + n.ranges.Add(1)%ranges) << 16}
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "soak", Uid: name},
		LogDirectory: filepath.Join(n.lab.PodLogs(), name),
		Hostname:     name,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    n.lab.PodParent(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: p.namespaces()},
		},
	}
	if s.host {
		p.config.Hostname = "" // such a pod has the node's
	}
	return p
}

func (p *pod) namespaces() *cri.NamespaceOption {
	o := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	if p.sort.host {
		o.Network = cri.NamespaceMode_NODE
	}
	if p.sort.mapped {
		ids := []*cri.IDMapping{{HostId: p.ids, ContainerId: 0, Length: 1 << 16}}
		o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return o
}

// run makes the pod. What an interrupted call left behind under its name is removed, and the next attempt takes its place,
// as the kubelet has it.
func (p *pod) run(ctx context.Context) error {
	name := p.config.GetMetadata().GetName()
	if err := errors.Join(os.MkdirAll(p.config.GetLogDirectory(), 0o755), harness.MakeCgroup(p.n.lab.PodGroup(name))); err != nil {
		return err
	}
	for {
		err := harness.Again(ctx, "RunPodSandbox", func(ctx context.Context) error {
			r, err := p.n.client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
			p.id = r.GetPodSandboxId()
			return err
		})
		if status.Code(errors.Unwrap(err)) != codes.AlreadyExists || p.config.GetMetadata().GetAttempt() == 3 {
			return err
		}
		if err := p.n.forget(ctx, p.config.GetMetadata()); err != nil {
			return err
		}
		p.config.Metadata.Attempt++
	}
}

// forget removes the pods of a name.
func (n *node) forget(ctx context.Context, of *cri.PodSandboxMetadata) error {
	var list *cri.ListPodSandboxResponse
	err := harness.Again(ctx, "ListPodSandbox", func(ctx context.Context) (err error) {
		list, err = n.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		return err
	})
	for _, s := range list.GetItems() {
		if s.GetMetadata().GetName() == of.GetName() {
			err = errors.Join(err, n.discard(ctx, s.GetId()))
		}
	}
	return err
}

// discard stops and removes a pod.
func (n *node) discard(ctx context.Context, id string) error {
	if err := harness.Again(ctx, "StopPodSandbox", func(ctx context.Context) error {
		_, err := n.client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	}); err != nil {
		return err
	}
	return harness.Again(ctx, "RemovePodSandbox", func(ctx context.Context) error {
		_, err := n.client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
}

// create makes a container that runs a script, after a look whether its image is there.
func (p *pod) create(ctx context.Context, name, script string) (id string, err error) {
	var found bool
	err = harness.Again(ctx, "ImageStatus", func(ctx context.Context) error {
		r, err := p.n.client.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
		found = r.GetImage() != nil
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("image %s is gone", image)
	}
	if err != nil {
		return "", err
	}
	err = harness.Again(ctx, "CreateContainer", func(ctx context.Context) error {
		r, err := p.n.client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: p.container(name, script)})
		id = r.GetContainerId()
		return err
	})
	return id, err
}

func (p *pod) container(name, script string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image, UserSpecifiedImage: image},
		Command: []string{"sh", "-c", script}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.namespaces(), NoNewPrivs: true,
				Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// exec is a probe: what it prints is known.
func (p *pod) exec(ctx context.Context, id, word string) error {
	var r *cri.ExecSyncResponse
	err := harness.Again(ctx, "ExecSync", func(ctx context.Context) (err error) {
		r, err = p.n.client.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", word}, Timeout: 20})
		return err
	})
	if err == nil && (string(r.GetStdout()) != word+"\n" || r.GetExitCode() != 0) {
		err = fmt.Errorf("ExecSync of echo %s says %q and ends with %d", word, r.GetStdout(), r.GetExitCode())
	}
	p.n.tally.execs.Add(1)
	return err
}

// remove stops and removes the pod, then what a kubelet made for it.
func (p *pod) remove(ctx context.Context) error {
	if p.id != "" {
		if err := p.n.discard(ctx, p.id); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(p.config.GetLogDirectory()), p.n.lab.RemovePodParent(p.config.GetMetadata().GetName()))
}
