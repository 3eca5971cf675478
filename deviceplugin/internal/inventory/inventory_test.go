package inventory

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

const gpuA = "GPU-5d5b1d8c-1111-2222-3333-444455556666"

func TestCleanKeepsWhatIsGood(t *testing.T) {
	n := Node{Driver: Driver{Version: "580.159.04", CUDA: "13.0"}, GPUs: []GPU{{
		UUID: "gpu-5D5B1D8C-1111-2222-3333-444455556666", Minor: 3, Bus: "00000000:3B:00.0", Product: "NVIDIA H100\t80GB  HBM3", NUMA: 1,
		Instances: []Instance{{UUID: "MIG-5d5b1d8c-1111-2222-3333-444455556667", Profile: "1G.10GB+ME", GICap: 1, CICap: 2}},
	}}}
	if bad := n.Clean(); len(bad) > 0 {
		t.Fatal(bad)
	}
	g := n.GPUs[0]
	if g.UUID != gpuA || g.Bus != "0000:3b:00.0" || g.Product != "NVIDIA H100 80GB HBM3" || g.Instances[0].Profile != "1g.10gb+me" {
		t.Errorf("%+v", g)
	}
}

func TestCleanLeavesOutWhatIsNot(t *testing.T) {
	good := GPU{UUID: gpuA, Bus: "0000:3b:00.0"}
	for name, change := range map[string]func(*GPU){
		"path in uuid": func(g *GPU) { g.UUID = "GPU-../../../etc/passwd" },
		"empty uuid":   func(g *GPU) { g.UUID = "" },
		"MIG uuid":     func(g *GPU) { g.UUID = strings.Replace(gpuA, "GPU", "MIG", 1) },
		"newline":      func(g *GPU) { g.UUID = gpuA + "\nx" },
		"path in bus":  func(g *GPU) { g.Bus = "0000:3b:00.0/../.." },
		"minor of ctl": func(g *GPU) { g.Minor = 255 },
		"negative":     func(g *GPU) { g.Minor = -1 },
	} {
		g := good
		change(&g)
		n := Node{GPUs: []GPU{g}}
		if bad := n.Clean(); len(n.GPUs) != 0 || len(bad) != 1 {
			t.Errorf("%s: %+v, %q", name, n.GPUs, bad)
		}
	}
	n := Node{GPUs: []GPU{good, good}}
	if bad := n.Clean(); len(n.GPUs) != 1 || len(bad) != 1 {
		t.Errorf("twice: %v %q", n.GPUs, bad)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		glob, name string
		want       bool
	}{
		{"*H100*", "NVIDIA H100 80GB HBM3", true},
		{"nvidia-h100-80gb-hbm3", "NVIDIA H100 80GB HBM3", true},
		{"*a100*", "NVIDIA H100 80GB HBM3", false},
		{"[", "x", false},
		{"1g.*", "1g.10gb", true},
	} {
		if Match(c.glob, c.name) != c.want {
			t.Errorf("%q on %q: %v", c.glob, c.name, !c.want)
		}
	}
}

func TestCaps(t *testing.T) {
	caps, err := ParseCaps(strings.NewReader("config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu1/gi0/access 138\n"))
	if err != nil {
		t.Fatal(err)
	}
	gi, ci := caps.Instance(0, 1, 0)
	if dgi, dci := DefaultCap(0, 1, 0); gi != 12 || ci != 13 || dgi != gi || dci != ci {
		t.Error(gi, ci)
	}
	if d, _ := DefaultCap(1, 0, 0); d != 138 {
		t.Error(d)
	}
	for _, bad := range []string{"gpu0", "gpu0 x", "gpu0 -1", "gpu0 99999999"} {
		if _, err := ParseCaps(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzClean: whatever a driver says, what is left has names that are safe as ids, labels and parts of paths.
func FuzzClean(f *testing.F) {
	f.Add([]byte(`{"driver":{"version":"580\u0000.1"},"gpus":[{"uuid":"GPU-\u001b[31m","bus":"../..","minor":-4}]}`))
	f.Add([]byte(`{"gpus":[{"uuid":"` + gpuA + `","bus":"0000:3B:00.0","product":"a\u202eb\nc","drm":["../x","card0"],"instances":[{"uuid":"MIG-x","profile":"1g.5gb/../"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n Node
		if json.Unmarshal(b, &n) != nil {
			return
		}
		n.Clean()
		safe := func(s string) {
			if strings.ContainsAny(s, "/\\\x00\n\"'") || strings.Contains(s, "..") || len(s) > 63 {
				t.Errorf("%q", s)
			}
		}
		for _, g := range n.GPUs {
			safe(g.UUID)
			safe(g.Bus)
			for _, d := range g.DRM {
				safe(d)
			}
			for _, r := range g.Product {
				if !unicode.IsPrint(r) {
					t.Errorf("product %q", g.Product)
				}
			}
			for _, in := range g.Instances {
				safe(in.UUID)
				safe(in.Profile)
			}
		}
		safe(n.Driver.Version)
		again, _ := json.Marshal(n)
		n.Clean()
		if b, _ := json.Marshal(n); string(b) != string(again) {
			t.Errorf("not the same when cleaned twice:\n%s\n%s", again, b)
		}
	})
}
