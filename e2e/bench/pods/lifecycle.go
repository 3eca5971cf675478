package pods

import (
	"context"
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The timed steps of a pod's life, in a kubelet's order. CreateStart is the sum of two, PodStart of three.
const (
	RunPodSandbox    = "run_pod_sandbox"
	CreateContainer  = "create_container"
	StartContainer   = "start_container"
	CreateStart      = "create_start"
	PodStart         = "pod_start"
	ExecSync         = "exec_sync"
	StopContainer    = "stop_container"
	StopPodSandbox   = "stop_pod_sandbox"
	RemoveContainer  = "remove_container"
	RemovePodSandbox = "remove_pod_sandbox"
)

// Steps are all of them.
func Steps() []string {
	return []string{RunPodSandbox, CreateContainer, StartContainer, CreateStart, PodStart, ExecSync, StopContainer, StopPodSandbox, RemoveContainer, RemovePodSandbox}
}

// Times is how long each step took.
type Times map[string]time.Duration

func timed(t Times, step string, call func() error) error {
	start := time.Now()
	err := call()
	t[step] = time.Since(start)
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

// Life runs one pod with one container from sandbox to removal. Whatever fails, the pod is removed.
func (r *Runner) Life(ctx context.Context, name string) (Times, error) {
	p, err := r.prepare(name)
	if err != nil {
		return nil, err
	}
	t := Times{}
	err = r.life(ctx, p, t)
	if err != nil && p.id != "" {
		err = errors.Join(err, r.remove(context.WithoutCancel(ctx), p))
	}
	t[CreateStart] = t[CreateContainer] + t[StartContainer]
	t[PodStart] = t[RunPodSandbox] + t[CreateStart]
	return t, errors.Join(err, p.clean())
}

// bootTime is what the workload gets to be scheduled, execute itself and install its handler of SIGTERM.
const bootTime = 30 * time.Millisecond

func (r *Runner) life(ctx context.Context, p *pod, t Times) error {
	rt, container := r.Client.Runtime, ""
	steps := []struct {
		name string
		call func() error
	}{
		{RunPodSandbox, func() error { return r.run(ctx, p) }},
		{CreateContainer, func() (err error) { container, err = r.create(ctx, p, "c", "/bin/wait"); return err }},
		{StartContainer, func() error {
			_, err := rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container})
			return err
		}},
		{ExecSync, func() error {
			resp, err := rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"/bin/true"}, Timeout: 10})
			if err == nil && resp.GetExitCode() != 0 {
				err = fmt.Errorf("exit code %d: %s", resp.GetExitCode(), resp.GetStderr())
			}
			return err
		}},
		{StopContainer, func() error {
			_, err := rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: container, Timeout: 10})
			return err
		}},
		{StopPodSandbox, func() error {
			_, err := rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
		{RemoveContainer, func() error {
			_, err := rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: container})
			return err
		}},
		{RemovePodSandbox, func() error {
			_, err := rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
	}
	for _, s := range steps {
		if s.name == StopContainer { // pid 1 is deaf until it has its handler: a node never stops what just started
			time.Sleep(bootTime)
		}
		if err := timed(t, s.name, s.call); err != nil {
			return p.errorf(s.name, err)
		}
	}
	return nil
}

func (r *Runner) run(ctx context.Context, p *pod) error {
	resp, err := r.Client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.sandbox})
	p.id = resp.GetPodSandboxId()
	return err
}

func (r *Runner) create(ctx context.Context, p *pod, name string, command ...string) (string, error) {
	resp, err := r.Client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.container(name, command...), SandboxConfig: p.sandbox,
	})
	return resp.GetContainerId(), err
}

func (r *Runner) start(ctx context.Context, p *pod, name string, command ...string) error {
	id, err := r.create(ctx, p, name, command...)
	if err != nil {
		return err
	}
	_, err = r.Client.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	return err
}

func (r *Runner) remove(ctx context.Context, p *pod) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := r.Client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return p.errorf("StopPodSandbox", err)
	}
	if _, err := r.Client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return p.errorf("RemovePodSandbox", err)
	}
	return nil
}
