package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callers is how many ask for the same thing at once; half of them leave before they are answered.
const callers = 64

// storm is one RPC and what may be said to a caller who comes when it is done.
type storm struct {
	name string
	late codes.Code // beside OK
	call func(ctx context.Context) (id string, err error)
}

// rage lets all callers make a call at once. Everybody who stays is told the same.
func rage(ctx context.Context, s storm) (id string, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	var faults []string
	for i := range callers {
		wg.Go(func() {
			call, cancel := context.WithTimeout(ctx, 30*time.Second)
			leaves := i%2 == 1
			if leaves {
				cancel()
				call, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(40))*time.Millisecond)
			}
			defer cancel()
			got, err := s.call(call)
			mu.Lock()
			defer mu.Unlock()
			switch code := status.Code(err); {
			case err == nil:
				answers[got]++
			case leaves && (code == codes.DeadlineExceeded || code == codes.Canceled):
			case s.late != codes.OK && code == s.late: // there is an answer, see below
			default:
				faults = append(faults, err.Error())
			}
		})
	}
	wg.Wait()
	total.add(stormCalls, callers)
	if len(faults) > 0 || len(answers) != 1 {
		return "", fmt.Errorf("%s: %d different answers %v; %d faults, the first: %s", s.name, len(answers), answers, len(faults), foremost(faults))
	}
	for id = range answers {
		return id, nil
	}
	return "", nil
}

func foremost(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// TestStorm: 64 callers make each of twelve calls at once, half of them leave; there is one object of each sort, and at the
// end nothing.
func TestStorm(t *testing.T) {
	t.Cleanup(func() { evict(t) })
	for round := range times(2, 100) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		err := stormLife(ctx, fmt.Sprint("storm-", round))
		cancel()
		if err != nil {
			total.add(otherFaults, 1)
			t.Fatalf("round %d: %v", round, err)
		}
	}
	node.clean(t)
}

// stormLife is a pod's life in which every call is made by all.
func stormLife(ctx context.Context, name string) error {
	p := &sandbox{n: node, name: name, config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "torture", Uid: name}, LogDirectory: node.lab.PodLogs() + "/" + name,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    node.lab.PodParent(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}}
	if err := os.MkdirAll(p.config.GetLogDirectory(), 0o755); err != nil {
		return err
	}
	image := &cri.ImageSpec{Image: another}
	var id string
	all := []storm{{"PullImage", codes.OK, func(ctx context.Context) (string, error) {
		r, err := node.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: image})
		return r.GetImageRef(), err
	}}}
	all = slices.Concat(all, p.making(&id), p.using(&id), p.ending(&id))
	all = append(all, storm{"RemoveImage", codes.OK, func(ctx context.Context) (string, error) {
		_, err := node.client.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
		return "", err
	}})
	for _, s := range all {
		got, err := rage(ctx, s)
		if err != nil {
			return err
		}
		switch s.name {
		case "RunPodSandbox":
			p.id = got
		case "CreateContainer":
			id = got
		}
		if err := p.only(ctx, s.name, id); err != nil {
			return err
		}
	}
	return p.remove(ctx)
}

// making are the calls that make a pod and a container.
func (p *sandbox) making(id *string) []storm {
	rt := node.client.Runtime
	return []storm{
		{"RunPodSandbox", codes.OK, func(ctx context.Context) (string, error) {
			r, err := rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
			return r.GetPodSandboxId(), err
		}},
		{"CreateContainer", codes.OK, func(ctx context.Context) (string, error) {
			r, err := rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "one"}, Image: &cri.ImageSpec{Image: busybox}, Command: []string{"sh", "-c", longScript(3)}, LogPath: "one.log",
				Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
			}})
			return r.GetContainerId(), err
		}},
		{"StartContainer", codes.FailedPrecondition, func(ctx context.Context) (string, error) {
			_, err := rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: *id})
			return "", err
		}},
	}
}

// using are those that concern a running one.
func (p *sandbox) using(id *string) []storm {
	rt := node.client.Runtime
	return []storm{
		{"ExecSync", codes.OK, func(ctx context.Context) (string, error) {
			r, err := rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: *id, Cmd: []string{"echo", "here"}, Timeout: 20})
			return string(r.GetStdout()), err
		}},
		{"UpdateContainerResources", codes.OK, func(ctx context.Context) (string, error) {
			_, err := rt.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: *id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}})
			return "", err
		}},
		{"ReopenContainerLog", codes.OK, func(ctx context.Context) (string, error) {
			_, err := rt.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: *id})
			return "", err
		}},
	}
}

// ending are those that take both away.
func (p *sandbox) ending(id *string) []storm {
	rt := node.client.Runtime
	return []storm{
		{"StopContainer", codes.OK, func(ctx context.Context) (string, error) {
			_, err := rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: *id, Timeout: 1})
			return "", err
		}},
		{"RemoveContainer", codes.OK, func(ctx context.Context) (string, error) {
			_, err := rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: *id})
			return "", err
		}},
		{"StopPodSandbox", codes.OK, func(ctx context.Context) (string, error) {
			_, err := rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
			return "", err
		}},
		{"RemovePodSandbox", codes.OK, func(ctx context.Context) (string, error) {
			_, err := rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
			return "", err
		}},
	}
}

// only checks that there is one pod and one container, while there should be.
func (p *sandbox) only(ctx context.Context, after, id string) error {
	pods, err := node.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := node.client.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	wantPods, wantContainers := 1, 1
	switch after {
	case "PullImage", "RemovePodSandbox", "RemoveImage":
		wantPods, wantContainers = 0, 0
	case "RunPodSandbox", "RemoveContainer", "StopPodSandbox":
		wantContainers = 0
	}
	if len(pods.GetItems()) != wantPods || len(containers.GetContainers()) != wantContainers {
		return fmt.Errorf("after %s of %s there are %d pods and %d containers, want %d and %d", after, id, len(pods.GetItems()), len(containers.GetContainers()), wantPods, wantContainers)
	}
	return nil
}
