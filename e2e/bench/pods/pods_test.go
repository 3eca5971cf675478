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
