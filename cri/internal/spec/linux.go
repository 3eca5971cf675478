package spec

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	mobyseccomp "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
)

func ptr[T any](v T) *T { return &v }

// Resources turns CRI limits into OCI ones. Zero fields are "not set", as everywhere in the CRI.
func Resources(r *cri.LinuxContainerResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if n := r.GetCpuShares(); n > 0 {
		cpu.Shares = ptr(uint64(n))
	}
	if n := r.GetCpuPeriod(); n > 0 {
		cpu.Period = ptr(uint64(n))
	}
	if n := r.GetCpuQuota(); n != 0 {
		cpu.Quota = ptr(n)
	}
	out.CPU = cpu
	out.Memory = &specs.LinuxMemory{}
	if n := r.GetMemoryLimitInBytes(); n > 0 {
		out.Memory.Limit = ptr(n)
		out.Memory.Swap = ptr(n) // no swap unless said otherwise
	}
	if n := r.GetMemorySwapLimitInBytes(); n != 0 {
		out.Memory.Swap = ptr(n)
	}
	for _, h := range r.GetHugepageLimits() {
		if strings.ContainsAny(h.GetPageSize(), "/\x00\n.") || h.GetPageSize() == "" {
			return nil, errs.InvalidArgument.Errorf("hugepage_limits: page_size %q", h.GetPageSize())
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	for k, v := range r.GetUnified() {
		if err := cgroup.ValidUnified(k); err != nil {
			return nil, err
		}
		if strings.ContainsAny(v, "\x00") {
			return nil, errs.InvalidArgument.Errorf("unified[%s] holds a NUL", k)
		}
	}
	out.Unified = r.GetUnified()
	return out, nil
}

// devices adds the device nodes of a container and the rules of its device cgroup: everything is denied but the
// standard nodes, making nodes, and what the pod was given.
func devices(s *specs.Spec, in Input, sc *cri.LinuxContainerSecurityContext) error {
	rule := func(t string, major, minor int64, access string) {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: t, Access: access}
		if major >= 0 {
			r.Major = ptr(major)
		}
		if minor >= 0 {
			r.Minor = ptr(minor)
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, r)
	}
	if sc.GetPrivileged() {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range in.HostDevices {
			s.Linux.Devices = append(s.Linux.Devices, node(d))
		}
	} else {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
		rule("c", -1, -1, "m")
		rule("b", -1, -1, "m")
		for _, minor := range []int64{3, 5, 7, 8, 9} { // null, zero, full, random, urandom
			rule("c", 1, minor, "rwm")
		}
		rule("c", 5, 0, "rwm")    // tty
		rule("c", 5, 1, "rwm")    // console
		rule("c", 5, 2, "rwm")    // ptmx
		rule("c", 136, -1, "rwm") // pts
	}
	for _, d := range in.Container.GetDevices() {
		nodes := in.Devices[d.GetHostPath()]
		if len(nodes) == 0 {
			return errs.InvalidArgument.Errorf("devices: %s is no device, nor a directory of devices, on this node", d.GetHostPath())
		}
		for _, n := range nodes {
			s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == n.Path })
			s.Linux.Devices = append(s.Linux.Devices, node(n))
			access := d.GetPermissions()
			if access == "" {
				access = "rwm"
			}
			rule(n.Type, n.Major, n.Minor, access)
		}
	}
	return nil
}

func node(d Device) specs.LinuxDevice {
	mode := fs.FileMode(d.Mode)
	return specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: ptr(d.UID), GID: ptr(d.GID)}
}

// DefaultSeccomp is the profile of RuntimeDefault: moby's, for the capabilities in the spec's bounding set.
func DefaultSeccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	return mobyseccomp.GetDefaultProfile(s)
}

// seccomp is the profile of a container, or nil when it is unconfined. A profile that is asked for and cannot be
// read is an error, never unconfined (CVE-2023-2431).
func seccomp(s *specs.Spec, in Input, sc *cri.LinuxContainerSecurityContext) (*specs.LinuxSeccomp, error) {
	if sc.GetPrivileged() {
		return nil, nil //nolint:nilnil // unconfined, by the CRI's definition of privileged
	}
	p := sc.GetSeccomp()
	if p == nil {
		return nil, nil //nolint:nilnil // unconfined: the kubelet always says otherwise
	}
	switch p.GetProfileType() {
	case cri.SecurityProfile_Unconfined:
		return nil, nil //nolint:nilnil // asked for
	case cri.SecurityProfile_RuntimeDefault:
		if in.Default != nil {
			return in.Default(s)
		}
		return DefaultSeccomp(s)
	case cri.SecurityProfile_Localhost:
		ref := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
		if !filepath.IsAbs(ref) {
			return nil, errs.InvalidArgument.Errorf("seccomp localhost_ref %q is not an absolute path", p.GetLocalhostRef())
		}
		body, err := in.Seccomp(ref)
		if err != nil {
			return nil, errs.InvalidArgument.Errorf("seccomp profile %s: %w", ref, err)
		}
		prof, err := mobyseccomp.LoadProfile(body, s)
		if err != nil {
			return nil, errs.InvalidArgument.Errorf("seccomp profile %s: %w", ref, err)
		}
		if prof == nil {
			return nil, errs.InvalidArgument.Errorf("seccomp profile %s is empty", ref)
		}
		return prof, nil
	}
	return nil, errs.InvalidArgument.Errorf("seccomp profile_type %d", p.GetProfileType())
}

// labels sets what an LSM is to do. Asked for on a machine without that LSM it is an error, but for the defaults.
func labels(s *specs.Spec, in Input, sc *cri.LinuxContainerSecurityContext) error {
	if err := apparmor(s, in, sc); err != nil {
		return err
	}
	return RefuseSELinux(sc.GetSelinuxOptions(), in.SELinux)
}

// RefuseSELinux is the error of who asks for an SELinux label, by the true reason: Berth sets none, active or not. Options
// that are all empty ask for nothing.
func RefuseSELinux(o *cri.SELinuxOption, active bool) error {
	label := strings.Join([]string{o.GetUser(), o.GetRole(), o.GetType(), o.GetLevel()}, ":")
	switch {
	case label == ":::":
		return nil
	case !active:
		return errs.FailedPrecondition.Errorf("selinux_options %s: SELinux is not active on this node: run the pod where it is, or take seLinuxOptions out of it", label)
	}
	return errs.FailedPrecondition.Errorf("selinux_options %s: this runtime sets no SELinux labels, though SELinux is active on this node: run the pod on a node with a runtime that does, or take seLinuxOptions out of it", label)
}

func apparmor(s *specs.Spec, in Input, sc *cri.LinuxContainerSecurityContext) error {
	p := sc.GetApparmor()
	if p == nil && sc.GetApparmorProfile() != "" { //nolint:staticcheck // old clients still send it
		p = legacyProfile(sc.GetApparmorProfile()) //nolint:staticcheck // as above
	}
	if sc.GetPrivileged() || p.GetProfileType() == cri.SecurityProfile_Unconfined && p != nil {
		return nil
	}
	if p.GetProfileType() == cri.SecurityProfile_Localhost {
		return localProfile(s, in, p.GetLocalhostRef())
	}
	switch { // not to name one is to ask for the default, where there is one (the API's appArmorProfile)
	case !in.AppArmor:
	case in.AppArmorDefault != "":
		s.Process.ApparmorProfile = in.AppArmorDefault
	case p != nil:
		return errs.FailedPrecondition.Errorf("apparmor profile RuntimeDefault: the daemon could not load its default profile when it started, its log says why")
	}
	return nil
}

func localProfile(s *specs.Spec, in Input, ref string) error {
	if !in.AppArmor {
		return errs.FailedPrecondition.Errorf("apparmor profile %q: AppArmor is not active on this node", ref)
	}
	name := strings.TrimPrefix(ref, "localhost/")
	if in.Loaded != nil {
		if err := in.Loaded(name); err != nil {
			return err
		}
	}
	s.Process.ApparmorProfile = name
	return nil
}

func legacyProfile(s string) *cri.SecurityProfile {
	switch {
	case s == "unconfined":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	case s == "runtime/default":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: s}
}
