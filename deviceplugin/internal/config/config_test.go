package config

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
)

func TestDefaultIsGoodAndComplete(t *testing.T) {
	text, err := Default().Text()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse([]byte(text)); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

const sharing = `
[[resources]]
name = "nvidia.com/gpu.shared"
select = { product = ["*L4*"] }
sharing = { strategy = "time-slicing", replicas = 4 }

[overrides.big]
mig_strategy = "mixed"
`

func TestOffer(t *testing.T) {
	c, err := Parse([]byte(sharing))
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Offer("")
	if err != nil || len(p.Rules) != 1 || p.Rules[0].Spread != alloc.Spread || p.Rules[0].Sharing != policy.TimeSlicing || p.Rules[0].Replicas != 4 {
		t.Errorf("%+v %v", p, err)
	}
	if p, err := c.Offer("big"); err != nil || p.MIG != policy.MIGMixed || len(p.Rules) != 0 {
		t.Errorf("%+v %v", p, err)
	}
	if _, err := c.Offer("none"); err == nil {
		t.Error("an override that is not there")
	}
}

func TestRefusals(t *testing.T) {
	for text, want := range map[string]string{
		"[health]\npol_ms = 3":                      `nearest is "health.poll_ms"`,
		"[[resources]]\nnmae = 'x'":                 `nearest is "resources.name"`,
		"root = 'x'":                                "root: \"x\" is not an absolute path",
		"x":                                         "line 1",
		"discovery = 'nvm'":                         "want auto, nvml, proc",
		"[health]\npoll_ms = 1":                     "health.poll_ms: 1, want 50",
		"mig_strategy = 'all'":                      "want none, single, mixed",
		"[driver]\ncapabilities = ['all']":          "want compute",
		"[[resources]]\nname = 'gpu'":               "no extended resource",
		"[[resources]]\nname = 'kubernetes.io/gpu'": "no extended resource",
		"[[resources]]\nname = 'a.b/c'\n[[resources]]\nname = 'a.b/c'":                                        "there twice",
		"[[resources]]\nname = 'a.bc/c'\nsharing = {replicas = 3}":                                            "exclusive",
		"[[resources]]\nname = 'a.bc/c'\nsharing = {strategy = 'mps'}":                                        "want 2 to 1000",
		"[[resources]]\nname = 'a.bc/c'\nselect = {uuid = ['[']}":                                             "no glob",
		"[[resources]]\nname = 'a.bc/c'\nselect = {mig = ['*']}\nsharing = {strategy = 'mps', replicas = 2}":  "not offered on MIG",
		"[[resources]]\nname = 'a.bc/c'\nsharing = {strategy = 'time-slicing', replicas = 2, memory_mib = 3}": "only mps",
		"[cluster]\noverride_label = 'a b'":                                                                   "no label's key",
		"[cluster]\nkubeconfig = 'a'":                                                                         "not an absolute path",
		"[overrides.'a b']\nmig_strategy = 'none'":                                                            "no label can have this value",
		"[overrides.x]\nmig_strategy = 'y'":                                                                   "overrides.x.mig_strategy",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
