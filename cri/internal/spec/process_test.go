package spec_test

import (
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
)

func TestArgs(t *testing.T) {
	for _, c := range []struct{ entrypoint, cmd, command, args, want string }{
		{"/e", "c1 c2", "", "", "/e c1 c2"},
		{"/e", "c1", "", "a", "/e a"},
		{"/e", "c1", "x y", "", "x y"}, // a command takes the image's cmd with it
		{"/e", "c1", "x", "a b", "x a b"},
		{"", "c1", "", "", "c1"},
		{"", "c1", "", "a", "a"},
	} {
		s, _, err := compile(t, func(in *spec.Input) {
			in.Image = ocispec.ImageConfig{Entrypoint: strings.Fields(c.entrypoint), Cmd: strings.Fields(c.cmd)}
			in.Container.Command, in.Container.Args = strings.Fields(c.command), strings.Fields(c.args)
		})
		if err != nil || strings.Join(s.Process.Args, " ") != c.want {
			t.Errorf("%+v: %v, %v", c, s, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*spec.Input)
		want   []string // in order, after PATH where that is the default
	}{
		{"a pod's variable replaces the image's, in place", func(in *spec.Input) {
			in.Image.Env = []string{"A=1", "B=2"}
			in.Container.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("x=y")}, {Key: "C", Value: []byte("é\xff")}}
		}, []string{"HOSTNAME=web-0", "A=x=y", "B=2", "C=é\xff"}},
		{"the last of one name wins", func(in *spec.Input) {
			in.Image.Env = nil
			in.Container.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "A", Value: []byte("2")}}
		}, []string{"HOSTNAME=web-0", "A=2"}},
		{"what is no variable is left out of an image's", func(in *spec.Input) {
			in.Image.Env = []string{"novalue", "=x", "A=a\x00b", "EMPTY="}
		}, []string{"HOSTNAME=web-0", "EMPTY="}},
		{"a terminal has a type", func(in *spec.Input) {
			in.Image.Env, in.Container.Tty = nil, true
		}, []string{"TERM=xterm", "HOSTNAME=web-0"}},
		{"which can be chosen", func(in *spec.Input) {
			in.Image.Env, in.Container.Tty = []string{"TERM=vt100", "HOSTNAME=mine"}, true
		}, []string{"TERM=vt100", "HOSTNAME=mine"}},
		{"a pod without a name of its own has the node's", func(in *spec.Input) {
			in.Image.Env, in.Sandbox.Hostname = nil, ""
		}, []string{"HOSTNAME=node"}},
	} {
		s, _, err := compile(t, c.change)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		want := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, c.want...)
		if !slices.Equal(s.Process.Env, want) {
			t.Errorf("%s: %q, want %q", c.what, s.Process.Env, want)
		}
	}
	s, _, err := compile(t, func(in *spec.Input) { in.Image.Env = []string{"PATH=/opt"} })
	if err != nil || s.Process.Env[0] != "PATH=/opt" {
		t.Errorf("the image's PATH: %v %v", s, err)
	}
}

func TestCapabilities(t *testing.T) {
	const last = 40
	all := last + 1
	for _, c := range []struct {
		add, drop, ambient string
		n                  int // how many, all sets but the ambient one
		with, without      string
		amb                string
	}{
		{n: 14, with: "CHOWN NET_BIND_SERVICE", without: "NET_ADMIN SYS_ADMIN"},
		{add: "NET_ADMIN", n: 15, with: "NET_ADMIN"},
		{add: "cap_net_admin Net_Raw", n: 15, with: "NET_ADMIN"},
		{drop: "CHOWN", n: 13, without: "CHOWN"},
		{drop: "ALL", n: 0},
		{drop: "ALL", add: "NET_BIND_SERVICE", n: 1, with: "NET_BIND_SERVICE"},
		{add: "ALL", n: all, with: "CHECKPOINT_RESTORE"},
		{add: "ALL", drop: "SYS_ADMIN", n: all - 1, without: "SYS_ADMIN"},
		{add: "ALL", drop: "ALL", n: 0},
		{add: "NET_ADMIN", drop: "NET_ADMIN", n: 14, without: "NET_ADMIN"},
		{ambient: "NET_ADMIN", n: 15, with: "NET_ADMIN", amb: "NET_ADMIN"},
		{ambient: "CHOWN", drop: "CHOWN", n: 13, without: "CHOWN"},
		{ambient: "NET_BIND_SERVICE", drop: "ALL", n: 1, amb: "NET_BIND_SERVICE"},
	} {
		s, _, err := compile(t, func(in *spec.Input) {
			security(in).Capabilities = &cri.Capability{
				AddCapabilities: strings.Fields(c.add), DropCapabilities: strings.Fields(c.drop), AddAmbientCapabilities: strings.Fields(c.ambient),
			}
		})
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		p := s.Process.Capabilities
		if len(p.Bounding) != c.n || !slices.Equal(p.Bounding, p.Effective) || !slices.Equal(p.Bounding, p.Permitted) {
			t.Errorf("%+v: %v", c, p)
		}
		for _, name := range strings.Fields(c.with) {
			if !slices.Contains(p.Bounding, "CAP_"+name) {
				t.Errorf("%+v misses %s", c, name)
			}
		}
		for _, name := range strings.Fields(c.without) {
			if slices.Contains(p.Bounding, "CAP_"+name) {
				t.Errorf("%+v has %s", c, name)
			}
		}
		// inheritable without ambient is what CVE-2022-24769 was about
		if got := strings.Join(p.Ambient, " "); got != strings.TrimSpace(strings.Repeat("CAP_"+c.amb, min(1, len(c.amb)))) || !slices.Equal(p.Ambient, p.Inheritable) {
			t.Errorf("%+v: ambient %v, inheritable %v", c, p.Ambient, p.Inheritable)
		}
	}
}

func TestNamespaces(t *testing.T) {
	const pod, container, node, target = cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE, cri.NamespaceMode_TARGET
	for _, c := range []struct {
		what          string
		podPid, ctPid cri.NamespaceMode
		net, ipc      cri.NamespaceMode
		join          string
		own, pidOf    string
	}{
		{"of its own", container, container, pod, pod, "net uts ipc", "mount pid cgroup", ""},
		{"shared by the pod", pod, pod, pod, pod, "net uts ipc pid", "mount cgroup", ""},
		{"shared, but not by this pod", container, pod, pod, pod, "net uts ipc", "mount pid cgroup", ""},
		{"the host's", node, node, node, node, "", "mount cgroup", ""},
		{"another container's", pod, target, pod, pod, "net uts ipc", "mount pid cgroup", "t1"},
	} {
		s, out, err := compile(t, func(in *spec.Input) {
			o := in.Sandbox.Linux.SecurityContext.NamespaceOptions
			o.Pid, o.Network, o.Ipc = c.podPid, c.net, c.ipc
			co := security(in).NamespaceOptions
			co.Pid = c.ctPid
			if c.ctPid == target {
				co.TargetId = "t1"
			}
		})
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		kinds := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}
		var own []string
		for _, n := range s.Linux.Namespaces {
			kind := string(n.Type)
			if short := kinds[n.Type]; short != "" {
				kind = short
			}
			if !slices.Contains(out.Join, kind) {
				own = append(own, kind)
			}
		}
		if strings.Join(out.Join, " ") != c.join || strings.Join(own, " ") != c.own || out.PidOf != c.pidOf {
			t.Errorf("%s: joins %v, own %v, pid of %q", c.what, out.Join, own, out.PidOf)
		}
	}
}

func TestSignal(t *testing.T) {
	for s, want := range map[string]unix.Signal{
		"SIGTERM": unix.SIGTERM, "term": unix.SIGTERM, " SIGQUIT ": unix.SIGQUIT, "9": unix.SIGKILL, "64": 64,
		"SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMIN+30": 64, "SIGRTMAX": 64, "SIGRTMAX-14": 50,
	} {
		if got, ok := spec.Signal(s); got != want || !ok {
			t.Errorf("Signal(%q) = %d, %v, want %d", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "0", "65", "-9", "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+x", "SIGNONE", "９", "9\x00", "SIGSIGTERM"} {
		if got, ok := spec.Signal(s); got != unix.SIGTERM || ok {
			t.Errorf("Signal(%q) = %d, %v, want SIGTERM, false", s, got, ok)
		}
	}
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"SIGTERM", "9", "SIGRTMIN+3", "-1", "SIGRTMAX-999999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if sig, ok := spec.Signal(s); sig < 1 || sig > 64 || !ok && sig != unix.SIGTERM {
			t.Errorf("Signal(%q) = %d, %v", s, sig, ok)
		}
	})
}
