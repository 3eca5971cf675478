package torture

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refusal is a request that can not be granted: its code, and the words that name the field, the cause and the way out.
type refusal struct {
	name  string
	call  func(context.Context) error
	code  codes.Code
	words string // all of them, separated by spaces
}

func (r refusal) check(ctx context.Context, t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := r.call(ctx)
	if status.Code(err) != r.code {
		t.Errorf("%s: code %s, want %s: %v", r.name, status.Code(err), r.code, err)
		return
	}
	said := status.Convert(err).Message()
	for _, w := range strings.Fields(r.words) {
		if !strings.Contains(said, w) {
			t.Errorf("%s: %q does not say %q", r.name, said, w)
		}
	}
}

// TestRefusedPods: RunPodSandbox of what can never work.
func TestRefusedPods(t *testing.T) {
	ctx := context.Background()
	run := func(handler string, change func(*cri.PodSandboxConfig)) func(context.Context) error {
		return func(ctx context.Context) error {
			c := &cri.PodSandboxConfig{
				Metadata: &cri.PodSandboxMetadata{Name: "refused", Namespace: "torture", Uid: "refused"},
				Linux: &cri.LinuxPodSandboxConfig{
					CgroupParent:    node.lab.PodParent("refused"),
					SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
				},
			}
			change(c)
			_, err := node.client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
			return err
		}
	}
	same := func(*cri.PodSandboxConfig) {}
	sysctl := func(k, v string, host bool) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{k: v}
			if host {
				c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
			}
		}
	}
	userns := func(uids, gids []*cri.IDMapping) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: uids, Gids: gids}
		}
	}
	high := []*cri.IDMapping{{HostId: 1 << 20, Length: 65536}}
	other := []*cri.IDMapping{{HostId: 1 << 21, Length: 65536}}
	for _, r := range []refusal{
		{"no config", func(ctx context.Context) error {
			_, err := node.client.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{})
			return err
		}, codes.InvalidArgument, "config"},
		{"no metadata", run("", func(c *cri.PodSandboxConfig) { c.Metadata = nil }), codes.InvalidArgument, "config.metadata name namespace uid"},
		{"unknown handler", run("kata", same), codes.InvalidArgument, `runtime_handler "kata" [runtimes.kata] RuntimeClass`},
		{"sysctl of the node", run("", sysctl("kernel.pid_max", "1000", false)), codes.InvalidArgument, "sysctls kernel.pid_max namespace node"},
		{"net sysctl on the host's network", run("", sysctl("net.ipv4.ip_forward", "1", true)), codes.InvalidArgument, "sysctls net.ipv4.ip_forward host"},
		{"sysctl that is a path", run("", sysctl("net/../kernel/pid_max", "1", false)), codes.InvalidArgument, "sysctls"},
		{"sysctl with an injected line", run("", sysctl("net.ipv4.ip_forward", "1\nkernel.x=1", false)), codes.InvalidArgument, "sysctls"},
		{"sysctl that does not exist", run("", sysctl("net.ipv4.nothing_of_the_kind", "1", false)), codes.Internal, "sysctl net.ipv4.nothing_of_the_kind no such file"},
		{"user namespace without mappings", run("", userns(nil, nil)), codes.InvalidArgument, "userns_options mapping"},
		{"user namespace mapped twice", run("", userns(append(high, other...), high)), codes.InvalidArgument, "userns_options.uids one mapping"},
		{"users and groups mapped differently", run("", userns(high, other)), codes.InvalidArgument, "userns_options alike"},
		{"long host name", run("", func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) }), codes.InvalidArgument, "hostname 64"},
		{"cgroup parent that leaves", run("", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }), codes.InvalidArgument, "cgroup_parent"},
		{"bandwidth", run("", func(c *cri.PodSandboxConfig) {
			c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"}
		}), codes.InvalidArgument, "ingress-bandwidth fast 10M"},
	} {
		r.check(ctx, t)
	}
	if list, err := node.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err != nil || len(list.GetItems()) > 0 {
		t.Errorf("a refused pod is listed: %v (%v)", list.GetItems(), err)
	}
	if err := node.lab.RemovePodParent("refused"); err != nil {
		t.Error(err)
	}
	node.clean(t)
}

// TestRefusedContainers: CreateContainer of what can never work, and calls in the wrong state.
func TestRefusedContainers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	t.Cleanup(func() { evict(t) })
	p, err := runPod(ctx, node, "refusals")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range createRefusals(p) {
		r.check(ctx, t)
	}
	id, err := p.create(ctx, "main", "sleep 600")
	if err != nil {
		t.Fatal(err)
	}
	rt := node.client.Runtime
	exec := func(ctx context.Context, cmd ...string) error {
		_, err := rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd})
		return err
	}
	refusal{"exec before start", func(ctx context.Context) error { return exec(ctx, "true") }, codes.FailedPrecondition, "CREATED not running"}.check(ctx, t)
	if err := p.n.client.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	for _, r := range []refusal{
		{"second start", func(ctx context.Context) error {
			_, err := rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		}, codes.FailedPrecondition, "RUNNING created"},
		{"exec of nothing", func(ctx context.Context) error { return exec(ctx) }, codes.InvalidArgument, "command empty"},
		{"terminal and stderr", func(ctx context.Context) error {
			_, err := rt.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Tty: true, Stdout: true, Stderr: true})
			return err
		}, codes.InvalidArgument, "tty stderr"},
		{"exec without a stream", func(ctx context.Context) error {
			_, err := rt.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"sh"}})
			return err
		}, codes.InvalidArgument, "stdin stdout stderr"},
	} {
		r.check(ctx, t)
	}
	if err := p.n.client.StopContainer(ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range []refusal{
		{"exec after the end", func(ctx context.Context) error { return exec(ctx, "true") }, codes.FailedPrecondition, "EXITED not running"},
		{"start after the end", func(ctx context.Context) error {
			_, err := rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		}, codes.FailedPrecondition, "EXITED created"},
	} {
		r.check(ctx, t)
	}
	if err := p.remove(ctx); err != nil {
		t.Fatal(err)
	}
	refusal{"container in a pod that is gone", func(ctx context.Context) error {
		_, err := rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: &cri.ContainerConfig{}})
		return err
	}, codes.NotFound, p.id}.check(ctx, t)
	node.clean(t)
}

func createRefusals(p *sandbox) []refusal {
	create := func(change func(*cri.ContainerConfig)) func(context.Context) error {
		return func(ctx context.Context) error {
			c := &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "refused"}, Image: &cri.ImageSpec{Image: busybox}, Command: []string{"true"}, LogPath: "refused.log",
				Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
			}
			change(c)
			_, err := p.n.client.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
			return err
		}
	}
	mount := func(m *cri.Mount) func(context.Context) error {
		return create(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{m} })
	}
	sc := func(s *cri.LinuxContainerSecurityContext) func(context.Context) error {
		return create(func(c *cri.ContainerConfig) { proto.Merge(c.Linux.SecurityContext, s) })
	}
	const invalid = codes.InvalidArgument
	return []refusal{
		{"no name", create(func(c *cri.ContainerConfig) { c.Metadata = nil }), invalid, "config.metadata.name"},
		{"group without a user", sc(&cri.LinuxContainerSecurityContext{RunAsGroup: &cri.Int64Value{Value: 5}}), invalid, "run_as_group run_as_user"},
		{"user that is not there", sc(&cri.LinuxContainerSecurityContext{RunAsUsername: "nobody-of-that-name"}), invalid, "nobody-of-that-name passwd"},
		{"capability", sc(&cri.LinuxContainerSecurityContext{Capabilities: &cri.Capability{AddCapabilities: []string{"CAP_FLY"}}}), invalid, "capabilit FLY"},
		{"log outside", create(func(c *cri.ContainerConfig) { c.LogPath = "../x" }), invalid, "log_path ../x directory"},
		{"image absent", create(func(c *cri.ContainerConfig) { c.Image.Image = "registry.k8s.io/not/there:1" }), codes.NotFound, "registry.k8s.io/not/there:1"},
		{"mount over everything", mount(&cri.Mount{ContainerPath: "/", HostPath: "/tmp"}), invalid, "mounts[0] container_path"},
		{"mount to nowhere", mount(&cri.Mount{HostPath: "/tmp"}), invalid, "mounts[0] container_path"},
		{"mount from nowhere", mount(&cri.Mount{ContainerPath: "/mnt"}), invalid, "mounts[0] host_path"},
		{"recursively read-only, but writable", mount(&cri.Mount{ContainerPath: "/mnt", HostPath: "/tmp", RecursiveReadOnly: true}), invalid, "mounts[0] recursive_read_only readonly"},
		{"recursively read-only, but propagating", mount(&cri.Mount{
			ContainerPath: "/mnt", HostPath: "/tmp", Readonly: true, RecursiveReadOnly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		}), invalid, "mounts[0] recursive_read_only propagation"},
		{"device that is not there", create(func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/nothing", ContainerPath: "/dev/nothing", Permissions: "rw"}}
		}), invalid, "devices /dev/nothing"},
		{"seccomp profile that is not there", sc(&cri.LinuxContainerSecurityContext{
			Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/nothing.json"},
		}), invalid, "seccomp /nothing.json"},
		{"AppArmor without AppArmor", sc(&cri.LinuxContainerSecurityContext{
			Apparmor: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "mine"},
		}), codes.FailedPrecondition, "apparmor mine AppArmor not active"},
	}
}

// TestUnknownIDs: to stop or remove what is not there is done; to ask of it is NotFound.
func TestUnknownIDs(t *testing.T) {
	const id = "00000000000000000000000000000000000000000000000000000000000000ff"
	rt, im := node.client.Runtime, node.client.Images
	type call = func(context.Context) error
	for name, c := range map[string]call{
		"StopContainer": func(ctx context.Context) error {
			_, err := rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func(ctx context.Context) error {
			_, err := rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"StopPodSandbox": func(ctx context.Context) error {
			_, err := rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func(ctx context.Context) error {
			_, err := rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemoveImage": func(ctx context.Context) error {
			_, err := im.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "no/thing:1"}})
			return err
		},
		"ImageStatus": func(ctx context.Context) error {
			_, err := im.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "no/thing:1"}})
			return err
		},
	} {
		refusal{name, c, codes.OK, ""}.check(t.Context(), t)
	}
	for name, c := range map[string]call{
		"ContainerStatus": func(ctx context.Context) error {
			_, err := rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"PodSandboxStatus": func(ctx context.Context) error {
			_, err := rt.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"StartContainer": func(ctx context.Context) error {
			_, err := rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		},
		"UpdateContainerResources": func(ctx context.Context) error {
			_, err := rt.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id})
			return err
		},
		"ReopenContainerLog": func(ctx context.Context) error {
			_, err := rt.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"ContainerStats": func(ctx context.Context) error {
			_, err := rt.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
			return err
		},
		"PodSandboxStats": func(ctx context.Context) error {
			_, err := rt.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
			return err
		},
		"ExecSync": func(ctx context.Context) error {
			_, err := rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"Exec": func(ctx context.Context) error {
			_, err := rt.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			return err
		},
		"Attach": func(ctx context.Context) error {
			_, err := rt.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdout: true})
			return err
		},
		"PortForward": func(ctx context.Context) error {
			_, err := rt.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: id})
			return err
		},
	} {
		refusal{name, c, codes.NotFound, id}.check(t.Context(), t)
	}
	empty := func(ctx context.Context) error {
		_, err := rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{})
		return err
	}
	refusal{"empty id", empty, codes.InvalidArgument, "id empty"}.check(t.Context(), t)
}

// TestRefusedPulls: references that are none, and images that no registry has.
func TestRefusedPulls(t *testing.T) {
	pull := func(ref string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := node.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			return err
		}
	}
	for _, r := range []refusal{
		{"no reference", pull(""), codes.InvalidArgument, "image.image"},
		{"upper case", pull("registry.k8s.io/UPPER:1"), codes.InvalidArgument, "UPPER"},
		// the mirror does not have it, and the registry itself can not be reached: both are said; the kubelet knows the word
		{"not there", pull("registry.k8s.io/no/such:image"), codes.Unknown, "RegistryUnavailable registry.k8s.io/no/such:image 404 127.0.0.1"},
	} {
		r.check(t.Context(), t)
	}
	node.clean(t)
}
