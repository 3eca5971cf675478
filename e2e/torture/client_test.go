package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// sandbox is a pod as its client knows it.
type sandbox struct {
	n        *machine
	name, id string
	ip       string
	config   *cri.PodSandboxConfig
}

// runPod makes a pod, until there is one. A pod that an interrupted call left NOTREADY is removed and made anew, with
// the next attempt, as the kubelet does.
func runPod(ctx context.Context, n *machine, name string) (*sandbox, error) {
	for attempt := uint32(0); ; attempt++ {
		p := &sandbox{n: n, name: name, config: &cri.PodSandboxConfig{
			Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "torture", Uid: name, Attempt: attempt},
			LogDirectory: filepath.Join(n.lab.PodLogs(), name),
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent:    n.lab.PodParent(name),
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
			},
		}}
		if err := os.MkdirAll(p.config.GetLogDirectory(), 0o755); err != nil {
			return nil, err
		}
		err := harness.Again(ctx, "RunPodSandbox", func(ctx context.Context) error {
			r, err := n.client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
			p.id = r.GetPodSandboxId()
			return err
		})
		if status.Code(errors.Unwrap(err)) == codes.AlreadyExists && attempt < 10 {
			if err := removeNamed(ctx, n, name); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		p.ip, err = p.address(ctx)
		return p, err
	}
}

func removeNamed(ctx context.Context, n *machine, name string) error {
	var list *cri.ListPodSandboxResponse
	err := harness.Again(ctx, "ListPodSandbox", func(ctx context.Context) (err error) {
		list, err = n.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		return err
	})
	for _, s := range list.GetItems() {
		if s.GetMetadata().GetName() == name {
			err = errors.Join(err, (&sandbox{n: n, id: s.GetId()}).remove(ctx))
		}
	}
	return err
}

// address is what the runtime says is the pod's, while the pod is ready.
func (p *sandbox) address(ctx context.Context) (string, error) {
	st, err := p.n.client.PodSandboxStatus(ctx, p.id)
	if err == nil && st.GetState() != cri.PodSandboxState_SANDBOX_READY {
		err = fmt.Errorf("pod %s (%s) is %s", p.name, p.id, st.GetState())
	}
	return st.GetNetwork().GetIp(), err
}

// create makes a container that runs a script.
func (p *sandbox) create(ctx context.Context, name, script string) (id string, err error) {
	return p.createWith(ctx, name, script, "")
}

// createWith is create with a directory of the node's as /volume.
func (p *sandbox) createWith(ctx context.Context, name, script, volume string) (id string, err error) {
	req := &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: busybox},
		Command: []string{"sh", "-c", script}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}}
	if volume != "" {
		req.Config.Mounts = []*cri.Mount{{HostPath: volume, ContainerPath: "/volume"}}
	}
	err = harness.Again(ctx, "CreateContainer", func(ctx context.Context) error {
		r, err := p.n.client.Runtime.CreateContainer(ctx, req)
		id = r.GetContainerId()
		return err
	})
	return id, err
}

// ended waits until a container has ended.
func (p *sandbox) ended(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	for {
		st, err := p.n.client.ContainerStatus(ctx, id)
		if err != nil || st.GetState() == cri.ContainerState_CONTAINER_EXITED {
			return st, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s of pod %s is %s: %w", id, p.name, st.GetState(), ctx.Err())
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// remove stops and removes the pod, and its logs.
func (p *sandbox) remove(ctx context.Context) error {
	err := harness.Again(ctx, "StopPodSandbox", func(ctx context.Context) error {
		_, err := p.n.client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if err != nil {
		return err
	}
	err = harness.Again(ctx, "RemovePodSandbox", func(ctx context.Context) error {
		_, err := p.n.client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if p.name != "" { // the pod's cgroup and its logs are the kubelet's
		err = errors.Join(err, os.RemoveAll(p.config.GetLogDirectory()), p.n.lab.RemovePodParent(p.name))
	}
	return err
}

// lines checks that a log has every line from "line 0" on once, and returns how many, and what comes after.
func lines(file string) (count int, rest []string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, nil, err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(f) < 4 || f[2] != "F" || !strings.HasSuffix(l, "\n") {
			return count, rest, fmt.Errorf("%s: after line %d: %q is no whole CRI log line", file, count-1, l)
		}
		var n int
		if _, err := fmt.Sscanf(f[3], "line %d", &n); err != nil {
			rest = append(rest, f[3])
			continue
		}
		if n != count {
			return count, rest, fmt.Errorf("%s: line %d where line %d was due", file, n, count)
		}
		count++
	}
	return count, rest, nil
}
