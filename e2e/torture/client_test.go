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
)

// again repeats a call as a kubelet does while the daemon is away.
func again(ctx context.Context, what string, call func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, 20*time.Second)
		begin := time.Now()
		err := call(try)
		cancel()
		if took := time.Since(begin); took > 3*time.Second && what != "StopContainer" {
			fmt.Fprintf(os.Stderr, "%s: %s took %v: %v\n", time.Now().UTC().Format("15:04:05.000"), what, took, err)
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		default:
			if err != nil {
				err = fmt.Errorf("%s: %w", what, err)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %w)", what, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

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
		err := again(ctx, "RunPodSandbox", func(ctx context.Context) error {
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
	err := again(ctx, "ListPodSandbox", func(ctx context.Context) (err error) {
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
	var st *cri.PodSandboxStatus
	err := again(ctx, "PodSandboxStatus", func(ctx context.Context) error {
		r, err := p.n.client.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
		st = r.GetStatus()
		return err
	})
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
	err = again(ctx, "CreateContainer", func(ctx context.Context) error {
		r, err := p.n.client.Runtime.CreateContainer(ctx, req)
		id = r.GetContainerId()
		return err
	})
	return id, err
}

// start starts a container. An answer lost with the daemon is made up for by the container's state.
func (p *sandbox) start(ctx context.Context, id string) error {
	err := again(ctx, "StartContainer", func(ctx context.Context) error {
		_, err := p.n.client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
		return err
	})
	if status.Code(errors.Unwrap(err)) == codes.FailedPrecondition {
		st, serr := p.status(ctx, id)
		if serr == nil && st.GetStartedAt() != 0 && st.GetReason() != "StartError" {
			return nil
		}
	}
	return err
}

func (p *sandbox) status(ctx context.Context, id string) (st *cri.ContainerStatus, err error) {
	err = again(ctx, "ContainerStatus", func(ctx context.Context) error {
		r, err := p.n.client.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		st = r.GetStatus()
		return err
	})
	return st, err
}

// ended waits until a container has ended.
func (p *sandbox) ended(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	for {
		st, err := p.status(ctx, id)
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

func (p *sandbox) stop(ctx context.Context, id string, grace time.Duration) error {
	return again(ctx, "StopContainer", func(ctx context.Context) error {
		_, err := p.n.client.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: int64(grace.Seconds())})
		return err
	})
}

// remove stops and removes the pod, and its logs.
func (p *sandbox) remove(ctx context.Context) error {
	err := again(ctx, "StopPodSandbox", func(ctx context.Context) error {
		_, err := p.n.client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if err != nil {
		return err
	}
	err = again(ctx, "RemovePodSandbox", func(ctx context.Context) error {
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
