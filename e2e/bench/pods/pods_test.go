package pods

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPlainJoinsPartialLines(t *testing.T) {
	got := plain("2026-01-01T00:00:00Z stdout P one \n2026-01-01T00:00:00Z stdout F two\nbroken\n2026-01-01T00:00:00Z stderr F \n")
	if got != "one two\n\n" {
		t.Fatalf("%q", got)
	}
}

// TestConfigIsAKubelets holds what makes a benchmark wrong if it is forgotten.
func TestConfigIsAKubelets(t *testing.T) {
	p := &pod{sandbox: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "x", Uid: "u"}}, dir: "/d"}
	c := p.container("c", "/bin/wait")
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetNamespaceOptions().GetPid() != cri.NamespaceMode_CONTAINER || sc.GetNamespaceOptions().GetNetwork() != cri.NamespaceMode_POD {
		t.Error("namespaces", sc.GetNamespaceOptions())
	}
	if sc.GetSeccomp().GetProfileType() != cri.SecurityProfile_RuntimeDefault || !sc.GetNoNewPrivs() || len(sc.GetMaskedPaths()) == 0 {
		t.Error("security context", sc)
	}
	if c.GetImage().GetUserSpecifiedImage() == "" || c.GetLinux().GetResources().GetMemoryLimitInBytes() == 0 {
		t.Error("image or limits", c)
	}
}

// TestShapes: what a condition asks for is in the messages of sandbox and container alike.
func TestShapes(t *testing.T) {
	for _, s := range []Shape{{}, {Userns: true}, {HostNetwork: true}} {
		p := &pod{sandbox: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "x"}}, dir: "/d", shape: s}
		o := p.container("c", "/bin/wait").GetLinux().GetSecurityContext().GetNamespaceOptions()
		if got := o.GetUsernsOptions().GetMode() == cri.NamespaceMode_POD && len(o.GetUsernsOptions().GetUids()) == 1; got != s.Userns {
			t.Errorf("%+v: user namespaces %v", s, o.GetUsernsOptions())
		}
		if got := o.GetNetwork() == cri.NamespaceMode_NODE; got != s.HostNetwork {
			t.Errorf("%+v: network %v", s, o.GetNetwork())
		}
	}
	r := &Runner{Group: "/g"}
	if other := r.With(Shape{Userns: true}); r.Shape.Userns || !other.Shape.Userns || other.Group != "/g" {
		t.Errorf("%+v, %+v", r, other)
	}
}
