package spec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/proto/errs"
)

var update = flag.Bool("update", false, "write the golden files")

// input is a container as the kubelet makes one from a plain pod. The parts are its own to change.
func input() spec.Input {
	return spec.Input{
		ID: "c1", PodID: "p1", CgroupPath: "/kubepods/p1/c1", CgroupNS: true, LastCap: 40, Hostname: "node",
		Sandbox: &cri.PodSandboxConfig{
			Hostname: "web-0",
			Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			}},
		},
		Container: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "web"},
			Image:    &cri.ImageSpec{Image: "sha256:0"},
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
				},
			},
		},
		Image: ocispec.ImageConfig{Entrypoint: []string{"/bin/web"}, Cmd: []string{"-v"}, Env: []string{"A=image"}},
		Files: spec.Files{ResolvConf: "/run/p1/resolv.conf", Hostname: "/run/p1/hostname", Hosts: "/run/p1/hosts", Shm: "/run/p1/shm"},
		User:  spec.User{UID: 0, GID: 0, Groups: []uint32{0}},
		Seccomp: func(path string) (string, error) {
			if path == "/profiles/good.json" {
				return `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`, nil
			}
			return "", os.ErrNotExist
		},
	}
}

func security(in *spec.Input) *cri.LinuxContainerSecurityContext {
	return in.Container.GetLinux().GetSecurityContext()
}

// userns puts the pod into a user namespace.
func userns(in *spec.Input) {
	ids := []*cri.IDMapping{{HostId: 65536, ContainerId: 0, Length: 65536}}
	in.Sandbox.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// goldens are whole specs, one file of testdata each.
func goldens() map[string]func(*spec.Input) {
	return map[string]func(*spec.Input){
		"plain": func(*spec.Input) {},
		"restricted": func(in *spec.Input) {
			sc := security(in)
			sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
			sc.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
			in.User = spec.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 2000}}
		},
		"privileged": func(in *spec.Input) {
			sc := security(in)
			sc.Privileged, sc.MaskedPaths, sc.ReadonlyPaths = true, nil, nil
			in.CgroupNS = false
			in.HostDevices = []spec.Device{{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11, Mode: 0o644}}
		},
		"userns": userns,
		"host-namespaces": func(in *spec.Input) {
			o := in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
			o.Network, o.Ipc, o.Pid = cri.NamespaceMode_NODE, cri.NamespaceMode_NODE, cri.NamespaceMode_NODE
			security(in).NamespaceOptions.Pid = cri.NamespaceMode_NODE
			in.Sandbox.Hostname = ""
			in.Files.Shm = "/dev/shm"
		},
		"devices": func(in *spec.Input) {
			in.Container.Devices = []*cri.Device{
				{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"},
				{ContainerPath: "/dev/gpu", HostPath: "/dev/dri", Permissions: ""},
			}
			in.Devices = map[string][]spec.Device{
				"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666}},
				"/dev/dri": {
					{Path: "/dev/gpu/card0", Type: "c", Major: 226, Minor: 0, Mode: 0o660, GID: 44},
					{Path: "/dev/gpu/renderD128", Type: "c", Major: 226, Minor: 128, Mode: 0o666},
				},
			}
		},
		"resources": func(in *spec.Input) {
			in.Container.Linux.Resources = &cri.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0-1", CpusetMems: "0", OomScoreAdj: -998,
				MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20, Unified: map[string]string{"memory.high": "1048576"},
				HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
			}
		},
		"volumes": func(in *spec.Input) {
			in.Container.Mounts = []*cri.Mount{
				{ContainerPath: "/data/deep/er", HostPath: "/v/2", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
				{ContainerPath: "/data", HostPath: "/v/1", Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
				{ContainerPath: "/etc/hosts", HostPath: "/kubelet/etc-hosts"},
				{ContainerPath: "/img", Image: &cri.ImageSpec{Image: "sha256:1"}},
				{ContainerPath: "/ro", HostPath: "/v/3", Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/opts", HostPath: "/v/4", MountOptions: []string{"noexec", "nodev", "nosuid"}},
			}
			in.Images = map[int]string{3: "/run/images/c1-3/sub"}
		},
	}
}

func TestGolden(t *testing.T) {
	for name, change := range goldens() {
		t.Run(name, func(t *testing.T) {
			in := input()
			change(&in)
			out, err := spec.Compile(in)
			if err != nil {
				t.Fatal(err)
			}
			again, err := spec.Compile(in)
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, out)
			if string(got) != string(render(t, again)) {
				t.Error("the same input gives other bytes")
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("differs from %s (-update writes it):\n%s", file, got)
			}
		})
	}
}

// render writes a result so that a difference is a line: lists first, what is left of the spec as JSON.
func render(t *testing.T, out spec.Output) []byte {
	t.Helper()
	var b bytes.Buffer
	s := *out.Spec
	process, linux := *s.Process, *s.Linux
	s.Process, s.Linux = &process, &linux
	fmt.Fprintf(&b, "join %q pid of %q\n", out.Join, out.PidOf)
	for _, n := range linux.Namespaces {
		fmt.Fprintf(&b, "namespace %s\n", n.Type)
	}
	for _, m := range s.Mounts {
		fmt.Fprintf(&b, "mount %s %s %s %s", m.Destination, m.Type, m.Source, strings.Join(m.Options, ","))
		if m.UIDMappings != nil {
			fmt.Fprintf(&b, " idmapped %v %v", m.UIDMappings, m.GIDMappings)
		}
		b.WriteByte('\n')
	}
	for _, d := range linux.Devices {
		fmt.Fprintf(&b, "device %s %s %d:%d %v %d:%d\n", d.Path, d.Type, d.Major, d.Minor, d.FileMode, *d.UID, *d.GID)
	}
	number := func(n *int64) string {
		if n == nil {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	resources := *linux.Resources
	for _, r := range resources.Devices {
		fmt.Fprintf(&b, "rule allow=%v %s %s:%s %s\n", r.Allow, r.Type, number(r.Major), number(r.Minor), r.Access)
	}
	c := process.Capabilities
	for _, set := range []struct {
		name string
		list []string
	}{{"bounding", c.Bounding}, {"effective", c.Effective}, {"permitted", c.Permitted}, {"inheritable", c.Inheritable}, {"ambient", c.Ambient}} {
		fmt.Fprintf(&b, "%s %s\n", set.name, strings.ReplaceAll(strings.Join(set.list, " "), "CAP_", ""))
	}
	process.Capabilities, s.Mounts, linux.Namespaces, linux.Devices = nil, nil, nil, nil
	resources.Devices, linux.Resources = nil, &resources
	rest, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(append(b.Bytes(), rest...), '\n')
}

// compile makes the spec of a changed input.
func compile(t *testing.T, change func(*spec.Input)) (*specs.Spec, spec.Output, error) {
	t.Helper()
	in := input()
	change(&in)
	out, err := spec.Compile(in)
	return out.Spec, out, err
}

// TestRefused lists what can never be right, and the word that must lead its sender to the field.
func TestRefused(t *testing.T) {
	mount := func(m *cri.Mount) func(*spec.Input) {
		return func(in *spec.Input) { in.Container.Mounts = []*cri.Mount{m} }
	}
	seccomp := func(p *cri.SecurityProfile) func(*spec.Input) {
		return func(in *spec.Input) { security(in).Seccomp = p }
	}
	resources := func(r *cri.LinuxContainerResources) func(*spec.Input) {
		return func(in *spec.Input) { in.Container.Linux.Resources = r }
	}
	local := func(ref string) *cri.SecurityProfile {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for _, c := range []struct {
		what   string
		change func(*spec.Input)
		class  errs.Class
		says   string
	}{
		{"group alone", func(in *spec.Input) { security(in).RunAsGroup = &cri.Int64Value{Value: 1} }, errs.InvalidArgument, "run_as_group"},
		{"two users", func(in *spec.Input) {
			security(in).RunAsUser, security(in).RunAsUsername = &cri.Int64Value{Value: 1}, "x"
		}, errs.InvalidArgument, "run_as_username"},
		{"no command", func(in *spec.Input) { in.Image = ocispec.ImageConfig{} }, errs.InvalidArgument, "no command"},
		{"NUL in a word", func(in *spec.Input) { in.Container.Command = []string{"a\x00b"} }, errs.InvalidArgument, "NUL"},
		{"name of a variable", func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{Key: "A=B"}} }, errs.InvalidArgument, "envs"},
		{"value of a variable", func(in *spec.Input) { in.Container.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("\x00")}} }, errs.InvalidArgument, "envs"},
		{"directory", func(in *spec.Input) { in.Container.WorkingDir = "tmp" }, errs.InvalidArgument, "working_dir"},
		{"image's directory", func(in *spec.Input) { in.Image.WorkingDir = "tmp" }, errs.InvalidArgument, "working_dir"},
		{"capability", func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}}
		}, errs.InvalidArgument, "FLY"},
		{"capability this kernel lacks", func(in *spec.Input) {
			in.LastCap = 38
			security(in).Capabilities = &cri.Capability{AddCapabilities: []string{"BPF"}}
		}, errs.InvalidArgument, "BPF"},
		{"device", func(in *spec.Input) { in.Container.Devices = []*cri.Device{{HostPath: "/dev/none"}} }, errs.InvalidArgument, "/dev/none"},
		{"relative mount", mount(&cri.Mount{ContainerPath: "a", HostPath: "/x"}), errs.InvalidArgument, "container_path"},
		{"mount on the root", mount(&cri.Mount{ContainerPath: "/a/..", HostPath: "/x"}), errs.InvalidArgument, "root"},
		{"mount of nothing", mount(&cri.Mount{ContainerPath: "/a"}), errs.InvalidArgument, "neither"},
		{"rro that is writable", mount(&cri.Mount{ContainerPath: "/a", HostPath: "/x", RecursiveReadOnly: true}), errs.InvalidArgument, "needs readonly"},
		{"rro that propagates", mount(&cri.Mount{
			ContainerPath: "/a", HostPath: "/x", RecursiveReadOnly: true, Readonly: true,
			Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		}), errs.InvalidArgument, "private"},
		{"mount option", mount(&cri.Mount{ContainerPath: "/a", HostPath: "/x", MountOptions: []string{"suid"}}), errs.InvalidArgument, "mount_options"},
		{"seccomp profile that is absent", seccomp(local("/profiles/none.json")), errs.InvalidArgument, "/profiles/none.json"},
		{"seccomp profile by a relative path", seccomp(local("localhost/good.json")), errs.InvalidArgument, "absolute"},
		{"seccomp profile type", seccomp(&cri.SecurityProfile{ProfileType: 9}), errs.InvalidArgument, "profile_type"},
		{"AppArmor on a node without it", func(in *spec.Input) { security(in).Apparmor = local("web") }, errs.FailedPrecondition, "AppArmor"},
		{"AppArmor in the old field", func(in *spec.Input) {
			security(in).ApparmorProfile = "localhost/web" //nolint:staticcheck // old clients send it
		}, errs.FailedPrecondition, "AppArmor"},
		{"unified file outside the group", resources(&cri.LinuxContainerResources{Unified: map[string]string{"../cgroup.procs": "1"}}), errs.InvalidArgument, "unified"},
		{"unified file of the kernel's own", resources(&cri.LinuxContainerResources{Unified: map[string]string{"cgroup.kill": "1"}}), errs.InvalidArgument, "unified"},
		{"page size", resources(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "../2MB"}}}), errs.InvalidArgument, "page_size"},
	} {
		if _, _, err := compile(t, c.change); !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v with %q", c.what, err, c.class, c.says)
		}
	}
}
