package spec_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/proto/errs"
)

func TestSeccomp(t *testing.T) {
	profile := func(kind cri.SecurityProfile_ProfileType, ref string) *cri.SecurityProfile {
		return &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	compiled := func(p *cri.SecurityProfile, privileged bool) *specs.LinuxSeccomp {
		t.Helper()
		s, _, err := compile(t, func(in *spec.Input) { security(in).Seccomp, security(in).Privileged = p, privileged })
		if err != nil {
			t.Fatal(err)
		}
		return s.Linux.Seccomp
	}
	if s := compiled(profile(cri.SecurityProfile_Unconfined, ""), false); s != nil {
		t.Errorf("unconfined: %v", s)
	}
	if s := compiled(nil, false); s != nil {
		t.Errorf("nothing said: %v", s)
	}
	if s := compiled(profile(cri.SecurityProfile_RuntimeDefault, ""), true); s != nil {
		t.Errorf("privileged: %v", s)
	}
	s := compiled(profile(cri.SecurityProfile_RuntimeDefault, ""), false)
	if s == nil || s.DefaultAction != specs.ActErrno || len(s.Syscalls) < 5 {
		t.Errorf("the default profile: %v", s)
	}
	for _, ref := range []string{"/profiles/good.json", "localhost//profiles/good.json"} {
		s := compiled(profile(cri.SecurityProfile_Localhost, ref), false)
		if s == nil || len(s.Syscalls) != 1 || s.Syscalls[0].Names[0] != "read" {
			t.Errorf("localhost profile %q: %v", ref, s)
		}
	}
}

func TestAppArmor(t *testing.T) {
	local := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "localhost/web"}
	for _, c := range []struct {
		what   string
		change func(*spec.Input)
		want   string
	}{
		{"a profile", func(in *spec.Input) { security(in).Apparmor = local }, "web"},
		{"privileged", func(in *spec.Input) { security(in).Apparmor, security(in).Privileged = local, true }, ""},
		{"unconfined", func(in *spec.Input) {
			security(in).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}, ""},
		{"the new field rules", func(in *spec.Input) {
			security(in).Apparmor = local
			security(in).ApparmorProfile = "unconfined" //nolint:staticcheck // old clients send it
		}, "web"},
	} {
		s, _, err := compile(t, func(in *spec.Input) { in.AppArmor = true; c.change(in) })
		if err != nil || s.Process.ApparmorProfile != c.want {
			t.Errorf("%s: %v, %v", c.what, s, err)
		}
	}
	missing := errs.FailedPrecondition.Errorf("not loaded")
	if _, _, err := compile(t, func(in *spec.Input) {
		in.AppArmor, in.Loaded = true, func(name string) error {
			if name != "web" {
				t.Errorf("asked for %q", name)
			}
			return missing
		}
		security(in).Apparmor = local
	}); !errors.Is(err, missing) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	fallback := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	for _, c := range []struct {
		what, loaded, want string
		profile            *cri.SecurityProfile
		privileged, fails  bool
	}{
		{what: "none named", loaded: "base", want: "base"},
		{what: "the default named", loaded: "base", profile: fallback, want: "base"},
		{what: "privileged", loaded: "base", privileged: true},
		{what: "unconfined", loaded: "base", profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}},
		{what: "none named, none loaded"},
		{what: "the default named, none loaded", profile: fallback, fails: true},
	} {
		s, _, err := compile(t, func(in *spec.Input) {
			in.AppArmor, in.AppArmorDefault = true, c.loaded
			security(in).Apparmor, security(in).Privileged = c.profile, c.privileged
		})
		if c.fails != errors.Is(err, errs.FailedPrecondition) || !c.fails && (err != nil || s.Process.ApparmorProfile != c.want) {
			t.Errorf("%s: %v, %v", c.what, s, err)
		}
	}
	// the default is no request: a node without AppArmor runs it
	if _, _, err := compile(t, func(in *spec.Input) {
		security(in).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}); err != nil {
		t.Error(err)
	}
}

// TestSELinux: a label that is asked for is refused, with the reason that is true here, and nothing is set.
func TestSELinux(t *testing.T) {
	for _, c := range []struct {
		option *cri.SELinuxOption
		active bool
		says   string // "": it is fine
	}{
		{nil, true, ""},
		{nil, false, ""},
		{&cri.SELinuxOption{}, true, ""},
		{&cri.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c1"}, false, "u:r:t:s0:c1: SELinux is not active"},
		{&cri.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c1"}, true, "sets no SELinux labels"},
		{&cri.SELinuxOption{Level: "s0:c1"}, true, "sets no SELinux labels"},
	} {
		s, _, err := compile(t, func(in *spec.Input) { in.SELinux, security(in).SelinuxOptions = c.active, c.option })
		if c.says == "" && (err != nil || s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "") {
			t.Errorf("%v: %v, %v", c.option, s, err)
		}
		if c.says != "" && (!errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "selinux_options") || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%v, active %v: %v", c.option, c.active, err)
		}
	}
}

func destinations(ms []specs.Mount) []string {
	var out []string
	for _, m := range ms {
		out = append(out, m.Destination)
	}
	return out
}

func TestMountOrder(t *testing.T) {
	for _, c := range []struct{ asked, want string }{
		// deep ones after shallow ones, equals as they were given
		{"/b/c /b /a", "/b /a /dev/shm /etc/resolv.conf /etc/hostname /etc/hosts /b/c"},
		// a volume does not hide the pod's own files below it
		{"/etc", "/etc /dev/shm /etc/resolv.conf /etc/hostname /etc/hosts"},
		// a file of the pod's takes the place of ours
		{"/etc/hosts/ /dev/shm", "/etc/resolv.conf /etc/hostname /etc/hosts /dev/shm"},
	} {
		s, _, err := compile(t, func(in *spec.Input) {
			for _, m := range strings.Fields(c.asked) {
				in.Container.Mounts = append(in.Container.Mounts, &cri.Mount{ContainerPath: m, HostPath: "/v"})
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := destinations(s.Mounts); strings.Join(got[6:], " ") != c.want {
			t.Errorf("%s: %v", c.asked, got[6:])
		}
	}
	s, _, err := compile(t, func(in *spec.Input) {
		in.Container.Mounts = []*cri.Mount{{ContainerPath: "/dev", HostPath: "/dev"}, {ContainerPath: "/sys", HostPath: "/sys"}}
	})
	if want := "/proc /sys/fs/cgroup /dev /sys /dev/shm /etc/resolv.conf /etc/hostname /etc/hosts"; err != nil || strings.Join(destinations(s.Mounts), " ") != want {
		t.Errorf("/dev of the host: %v, %v", destinations(s.Mounts), err)
	}
}

func TestReadOnlyRootfs(t *testing.T) {
	s, _, err := compile(t, func(in *spec.Input) { security(in).ReadonlyRootfs = true })
	if err != nil || !s.Root.Readonly {
		t.Fatal(s, err)
	}
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/etc/") && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s can be written", m.Destination)
		}
		if m.Destination == "/dev/shm" && !slices.Contains(m.Options, "rw") {
			t.Errorf("/dev/shm cannot be written: %v", m.Options)
		}
	}
}

func TestResources(t *testing.T) {
	swap := func(memory, swap int64) (int64, bool) {
		t.Helper()
		r, err := spec.Resources(&cri.LinuxContainerResources{MemoryLimitInBytes: memory, MemorySwapLimitInBytes: swap})
		if err != nil {
			t.Fatal(err)
		}
		if r.Memory.Swap == nil {
			return 0, false
		}
		return *r.Memory.Swap, true
	}
	for _, c := range []struct{ memory, swap, want int64 }{{100, 0, 100}, {100, 200, 200}, {100, -1, -1}, {0, -1, -1}} {
		if got, ok := swap(c.memory, c.swap); !ok || got != c.want {
			t.Errorf("memory %d, swap %d: %d %v", c.memory, c.swap, got, ok)
		}
	}
	if got, ok := swap(0, 0); ok {
		t.Errorf("no limit at all: %d", got)
	}
	r, err := spec.Resources(&cri.LinuxContainerResources{CpuQuota: -1})
	if err != nil || r.CPU.Quota == nil || *r.CPU.Quota != -1 || r.CPU.Shares != nil || r.CPU.Period != nil {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := spec.Resources(nil); err != nil || r == nil {
		t.Errorf("none: %v, %v", r, err)
	}
}

// TestSysctls: they are the pod's, whatever a container's annotations or config say.
func TestSysctls(t *testing.T) {
	s, _, err := compile(t, func(in *spec.Input) {
		in.Sandbox.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	})
	if err != nil || len(s.Linux.Sysctl) != 0 {
		t.Errorf("%v, %v", s, err)
	}
}
