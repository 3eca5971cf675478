package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

func uuid(kind string, n int) string { return fmt.Sprintf("%s-00000000-0000-0000-0000-%012d", kind, n) }

func node(mig ...int) *inventory.Node {
	n := &inventory.Node{}
	for i := range 4 {
		n.GPUs = append(n.GPUs, inventory.GPU{UUID: uuid("GPU", i), Index: i, Bus: fmt.Sprintf("0000:0%d:00.0", i), Product: "NVIDIA H100 80GB HBM3", NUMA: i / 2})
	}
	n.GPUs[3].Product = "NVIDIA L4"
	for _, i := range mig {
		g := &n.GPUs[i]
		g.MIG = true
		for k, p := range []string{"1g.10gb", "1g.10gb", "3g.40gb", "1g.10gb+me"} {
			g.Instances = append(g.Instances, inventory.Instance{UUID: uuid("MIG", i*10+k), Profile: p, GI: k + 1})
		}
	}
	return n
}

// lines writes a plan as a person reads it.
func lines(p Plan) string {
	var b strings.Builder
	for _, r := range p.Resources {
		fmt.Fprintf(&b, "%s:", r.Rule.Name)
		for _, d := range r.Devices {
			id := strings.NewReplacer("-00000000-0000-0000-0000-0000000000", "").Replace(d.ID)
			if !d.Healthy() {
				id += "(" + d.Reason + ")"
			}
			b.WriteString(" " + id)
		}
		b.WriteString("\n")
	}
	for _, u := range p.Unserved {
		fmt.Fprintf(&b, "not: %s %.30s\n", strings.NewReplacer("-00000000-0000-0000-0000-0000000000", "").Replace(u.UUID), u.Reason)
	}
	return b.String()
}

func TestCompile(t *testing.T) {
	sick := map[string]string{uuid("GPU", 1): "lost"}
	for _, c := range []struct {
		name string
		node *inventory.Node
		p    Policy
		want string
	}{
		{"nothing said", node(), Policy{MIG: MIGNone}, "nvidia.com/gpu: GPU00 GPU01(lost) GPU02 GPU03\n"},
		{"none leaves a divided GPU out", node(1), Policy{MIG: MIGNone}, "nvidia.com/gpu: GPU00 GPU02 GPU03\nnot: GPU01 it is in MIG mode: set mig_str\n"},
		{
			"mixed", node(1),
			Policy{MIG: MIGMixed},
			"nvidia.com/gpu: GPU00 GPU02 GPU03\nnvidia.com/mig-1g.10gb: MIG10(lost) MIG11(lost)\nnvidia.com/mig-1g.10gb.me: MIG13(lost)\nnvidia.com/mig-3g.40gb: MIG12(lost)\n",
		},
		{
			"single refuses a mixture", node(1),
			Policy{MIG: MIGSingle},
			"nvidia.com/gpu:\nnot: GPU00 MIG strategy single needs ever\nnot: MIG10 MIG strategy single needs ever\nnot: MIG11 MIG strategy single needs ever\nnot: MIG12 MIG strategy single needs ever\nnot: MIG13 MIG strategy single needs ever\nnot: GPU02 MIG strategy single needs ever\nnot: GPU03 MIG strategy single needs ever\n",
		},
		{
			"rules, the first that fits", node(),
			Policy{Rules: []Rule{
				{Name: "x/shared", Product: []string{"*l4*"}, Sharing: TimeSlicing, Replicas: 2, Spread: alloc.Spread},
				{Name: "x/one", Bus: []string{"0000:02:*"}, Sharing: Exclusive},
				{Name: "x/rest", UUID: []string{uuid("GPU", 0)}, Sharing: Exclusive},
			}},
			"x/shared: GPU03::0 GPU03::1\nx/one: GPU02\nx/rest: GPU00\nnot: GPU01 no resource of the configurati\n",
		},
		{
			"replicas of an instance fall ill with its GPU", node(1),
			Policy{Rules: []Rule{
				{Name: "x/mig", MIG: []string{"1g.10gb"}, Sharing: TimeSlicing, Replicas: 2},
			}},
			"x/mig: MIG10::0(lost) MIG10::1(lost) MIG11::0(lost) MIG11::1(lost)\nnot: GPU00 no resource of the configurati\nnot: MIG12 no resource of the configurati\nnot: MIG13 no resource of the configurati\nnot: GPU02 no resource of the configurati\nnot: GPU03 no resource of the configurati\n",
		},
	} {
		if got := lines(Compile(c.node, c.p, sick)); got != c.want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, c.want)
		}
	}
}

func TestSingleWhereAllAreAlike(t *testing.T) {
	n := node(0)
	n.GPUs = n.GPUs[:1]
	n.GPUs[0].Instances = n.GPUs[0].Instances[:2]
	if got := lines(Compile(n, Policy{MIG: MIGSingle}, nil)); got != "nvidia.com/gpu: MIG00 MIG01\n" {
		t.Error(got)
	}
	n.GPUs[0].Instances = nil
	if got := lines(Compile(n, Policy{MIG: MIGMixed}, nil)); got != "nvidia.com/gpu:\nnot: GPU00 it is in MIG mode and has no i\n" {
		t.Error(got)
	}
}

func TestIDsFitTheKubelet(t *testing.T) {
	r := Rule{Name: "x/y", MIG: []string{"*"}, Sharing: TimeSlicing, Replicas: 1000}
	for _, d := range Compile(node(0, 1), Policy{Rules: []Rule{r}}, nil).Resources[0].Devices {
		if len(d.ID) > 63 {
			t.Fatal(d.ID)
		}
	}
}
