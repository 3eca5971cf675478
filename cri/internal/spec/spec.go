// Package spec turns a CRI container into an OCI runtime spec. It is pure: everything it needs to know of the
// machine, the image and the pod is in its [Input], and the same input gives the same bytes.
//
// Sources: CRI v1 api.proto (k8s.io/cri-api), runtime-spec 1.3. What the kubelet sends is policy and is executed as
// it stands; what the image says is a default that decides nothing on the host.
package spec

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// Input is all that decides a container's spec.
type Input struct {
	ID, PodID string
	Sandbox   *cri.PodSandboxConfig
	Container *cri.ContainerConfig
	Image     ocispec.ImageConfig
	User      User
	// Hostname is the node's: a pod on the host's network has no name of its own.
	Hostname string
	// CgroupPath is the container's group, CgroupNS whether it sees itself as the root of the hierarchy.
	CgroupPath string
	CgroupNS   bool
	// Files are host paths of the pod's own files; an empty one is not mounted.
	Files Files
	// Images maps the index of a mount with an image to the directory that holds its content.
	Images map[int]string
	// HostDevices are the machine's device nodes, for privileged containers; Devices those of CRI devices by
	// host path (a directory stands for all below it).
	HostDevices []Device
	Devices     map[string][]Device
	// LastCap is the highest capability the kernel knows.
	LastCap int
	// AppArmor and SELinux say whether the machine enforces them.
	AppArmor, SELinux bool
	// AppArmorDefault is the profile of containers that name none; empty if the kernel does not have it.
	AppArmorDefault string
	// Loaded refuses an AppArmor profile that the kernel does not have; nil takes every one.
	Loaded func(profile string) error
	// Default gives the runtime's default seccomp profile for a spec, whose capabilities alone decide it; nil makes
	// it anew. What it returns is not changed.
	Default func(*specs.Spec) (*specs.LinuxSeccomp, error)
	// Seccomp reads a localhost profile by its path, as JSON.
	Seccomp func(path string) (string, error)
}

// Files are the files the runtime makes for a pod.
type Files struct {
	ResolvConf, Hostname, Hosts, Shm string
}

// Device is a device node on the host.
type Device struct {
	Path         string // in the container
	Type         string // b, c or p
	Major, Minor int64
	Mode         uint32
	UID, GID     uint32
}

// Output is a spec and how its container joins the pod.
type Output struct {
	Spec *specs.Spec
	// Join are the kinds of the pod's namespaces that are entered, PidOf the container whose pid namespace is.
	Join  []string
	PidOf string
}

// Compile makes the spec.
func Compile(in Input) (Output, error) {
	sc := in.Container.GetLinux().GetSecurityContext()
	if err := check(in, sc); err != nil {
		return Output{}, err
	}
	out := Output{Spec: &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: "rootfs", Readonly: sc.GetReadonlyRootfs()},
		Annotations: in.Container.GetAnnotations(),
		Linux: &specs.Linux{
			CgroupsPath:   in.CgroupPath,
			MaskedPaths:   sc.GetMaskedPaths(),
			ReadonlyPaths: sc.GetReadonlyPaths(),
		},
	}}
	s := out.Spec
	namespaces(&out, in)
	var err error
	if s.Process, err = process(in, sc); err != nil {
		return Output{}, err
	}
	if s.Mounts, err = mounts(in, sc); err != nil {
		return Output{}, err
	}
	s.Linux.RootfsPropagation = propagation(in.Container.GetMounts())
	if s.Linux.Resources, err = Resources(in.Container.GetLinux().GetResources()); err != nil {
		return Output{}, err
	}
	if err := devices(s, in, sc); err != nil {
		return Output{}, err
	}
	if s.Linux.Seccomp, err = seccomp(s, in, sc); err != nil {
		return Output{}, err
	}
	return out, labels(s, in, sc)
}

// check refuses what can never be right, naming the field.
func check(in Input, sc *cri.LinuxContainerSecurityContext) error {
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return errs.InvalidArgument.Errorf("linux.security_context.run_as_group is set without run_as_user or run_as_username: set one of them")
	}
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return errs.InvalidArgument.Errorf("linux.security_context: run_as_user and run_as_username exclude each other")
	}
	for _, e := range in.Container.GetEnvs() {
		if e.GetKey() == "" || strings.ContainsAny(e.GetKey(), "=\x00") || strings.Contains(string(e.GetValue()), "\x00") {
			return errs.InvalidArgument.Errorf("envs: %q is no environment variable's name, or its value holds a NUL", e.GetKey())
		}
	}
	return nil
}

// namespaces lists the namespaces: those of the pod are joined, the rest are new, a host's is left out.
func namespaces(out *Output, in Input) {
	add := func(t specs.LinuxNamespaceType) {
		out.Spec.Linux.Namespaces = append(out.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
	join := func(t specs.LinuxNamespaceType, kind string) {
		add(t)
		out.Join = append(out.Join, kind)
	}
	pod := in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	opt := in.Container.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if UserNamespaced(in.Sandbox) {
		join(specs.UserNamespace, "user")
		out.Spec.Linux.UIDMappings = idMappings(pod.GetUsernsOptions().GetUids())
		out.Spec.Linux.GIDMappings = idMappings(pod.GetUsernsOptions().GetGids())
	}
	add(specs.MountNamespace)
	if pod.GetNetwork() != cri.NamespaceMode_NODE {
		join(specs.NetworkNamespace, "net")
		join(specs.UTSNamespace, "uts")
	}
	if pod.GetIpc() != cri.NamespaceMode_NODE {
		join(specs.IPCNamespace, "ipc")
	}
	switch opt.GetPid() {
	case cri.NamespaceMode_POD:
		if pod.GetPid() == cri.NamespaceMode_POD {
			join(specs.PIDNamespace, "pid")
		} else {
			add(specs.PIDNamespace)
		}
	case cri.NamespaceMode_CONTAINER:
		add(specs.PIDNamespace)
	case cri.NamespaceMode_TARGET:
		add(specs.PIDNamespace)
		out.PidOf = opt.GetTargetId()
	case cri.NamespaceMode_NODE:
	}
	if in.CgroupNS {
		add(specs.CgroupNamespace)
	}
}

// UserNamespaced says whether a pod has its own user namespace.
func UserNamespaced(c *cri.PodSandboxConfig) bool {
	o := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	return o != nil && o.GetMode() == cri.NamespaceMode_POD
}

func idMappings(ms []*cri.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range ms {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}
