package kube

import (
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/cni/internal/fabric"
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func team() *fabric.Fabric {
	return &fabric.Fabric{
		Pools: []fabric.Pool{
			{Name: "default", CIDRs: prefixes("10.244.0.0/16")},
			{Name: "team", CIDRs: prefixes("10.245.0.0/24", "fd45::/64"), Namespaces: []string{"a"}},
		},
		Nodes: []fabric.Node{
			{Name: "n1", PodCIDRs: prefixes("10.244.1.0/24")},
			{Name: "n2", PodCIDRs: prefixes("10.244.2.0/24")},
		},
	}
}

// TestClaims: each node takes one block of each network, no two the same, until there is none.
func TestClaims(t *testing.T) {
	f, bits := team(), map[string][2]int{"team": {26, 122}, "default": {26, 122}}
	for i := range f.Nodes {
		got, err := claims(f, f.Nodes[i], bits, nil)
		if err != nil || len(got) != 2 || got[0].cidr.Bits() != 26 || got[1].cidr.Bits() != 122 {
			t.Fatalf("%s: %+v, %v", f.Nodes[i].Name, got, err)
		}
		for _, b := range got {
			if x, err := blockOf(&NetworkBlock{ObjectMeta: metav1.ObjectMeta{Name: b.name}, Spec: NetworkBlockSpec{Pool: b.pool, Node: b.node, CIDR: b.cidr.String()}}); err != nil || x.cidr != b.cidr || x.pool != b.pool || x.node != b.node {
				t.Errorf("%+v became %+v, %v", b, x, err)
			}
		}
		if remarks := giveBlocks(f, got); len(remarks) > 0 || len(f.Nodes[i].PodCIDRs) != 3 {
			t.Errorf("%q, %v", remarks, f.Nodes[i].PodCIDRs)
		}
		if again, err := claims(f, f.Nodes[i], bits, nil); err != nil || len(again) != 0 {
			t.Errorf("claimed again: %+v, %v", again, err)
		}
	}
	if err := f.Validate(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"n3", "n4", "n5"} { // there are four
		f.Nodes = append(f.Nodes, fabric.Node{Name: name})
		got, err := claims(f, f.Nodes[len(f.Nodes)-1], bits, nil)
		if full := name == "n5"; full != (err != nil) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		giveBlocks(f, got)
	}
}

// TestWrongBlocks: what is wrong is left out and named, and its node keeps the rest.
func TestWrongBlocks(t *testing.T) {
	f := team()
	remarks := giveBlocks(f, []block{
		{name: "a", pool: "team", node: "n1", cidr: netip.MustParsePrefix("10.245.0.0/26")},
		{name: "b", pool: "team", node: "n2", cidr: netip.MustParsePrefix("10.245.0.0/25")},
		{name: "c", pool: "team", node: "n2", cidr: netip.MustParsePrefix("10.246.0.0/26")},
		{name: "d", pool: "default", node: "n2", cidr: netip.MustParsePrefix("10.245.0.64/26")},
		{name: "e", pool: "team", node: "gone", cidr: netip.MustParsePrefix("10.245.0.128/26")},
		{name: "f", pool: "default", node: "n1", cidr: netip.MustParsePrefix("10.244.2.0/26")},
	})
	if got := strings.Join(remarks, "\n"); got != "block b: 10.245.0.0/25 overlaps another\nblock c: 10.246.0.0/26 is not in pool team\n"+
		"block d: 10.245.0.64/26 is not in pool default\nblock f: 10.244.2.0/26 overlaps another" {
		t.Error(got)
	}
	if len(f.Nodes[0].PodCIDRs) != 2 || len(f.Nodes[1].PodCIDRs) != 1 || f.Validate() != nil {
		t.Errorf("%+v, %v", f.Nodes, f.Validate())
	}
	for _, spec := range []NetworkBlockSpec{{CIDR: "10.245.0.0"}, {CIDR: "10.245.0.1/26"}, {CIDR: "10.245.0.64/26"}} {
		if _, err := blockOf(&NetworkBlock{ObjectMeta: metav1.ObjectMeta{Name: "10-245-0-0-26"}, Spec: spec}); err == nil || !strings.Contains(err.Error(), "spec.cidr") {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

func TestPoolBlocks(t *testing.T) {
	for _, c := range []struct {
		size, size6, want4, want6 int
		bad                       string
	}{
		{want4: 26, want6: 122},
		{size: 24, size6: 112, want4: 24, want6: 112},
		{size: 31, bad: "spec.blockSize"},
		{size6: 127, bad: "spec.blockSizeV6"},
		{size: -1, bad: "spec.blockSize"},
	} {
		p, err := readPool(&NetworkPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: NetworkPoolSpec{CIDRs: []string{"10.0.0.0/8"}, BlockSize: c.size, BlockSizeV6: c.size6}})
		if (err != nil) != (c.bad != "") || err != nil && !strings.Contains(err.Error(), c.bad) || err == nil && p.bits != [2]int{c.want4, c.want6} {
			t.Errorf("%+v: %v, %v", c, p.bits, err)
		}
	}
}

// TestClaimsBesideOthers: what any object has is not chosen, whatever its size and whether its node still counts; the older
// block keeps its place; a network that is full keeps no other away.
func TestClaimsBesideOthers(t *testing.T) {
	f, bits := team(), map[string][2]int{"team": {26, 122}}
	have := []block{
		{name: "a", pool: "team", node: "n1", cidr: netip.MustParsePrefix("10.245.0.0/25")},
		{name: "b", pool: "renamed", node: "n2", cidr: netip.MustParsePrefix("10.245.0.128/26")},
	}
	got, err := claims(f, f.Nodes[1], bits, have)
	if err != nil || len(got) != 2 || got[0].cidr != netip.MustParsePrefix("10.245.0.192/26") {
		t.Errorf("%+v, %v", got, err)
	}
	have = append(have, got[0])
	if got, err = claims(f, f.Nodes[1], bits, have); err == nil || len(got) != 1 || !got[0].cidr.Addr().Is6() {
		t.Errorf("a full network: %+v, %v", got, err)
	}
	giveBlocks(f, []block{
		{name: "0-new", pool: "team", node: "n2", cidr: netip.MustParsePrefix("10.245.0.0/26"), made: 2},
		{name: "9-old", pool: "team", node: "n1", cidr: netip.MustParsePrefix("10.245.0.0/25"), made: 1},
	})
	if len(f.Nodes[0].PodCIDRs) != 2 || len(f.Nodes[1].PodCIDRs) != 1 {
		t.Errorf("the newer one won: %+v", f.Nodes)
	}
	f = team()
	f.Nodes[0].UID = "now"
	giveBlocks(f, []block{{name: "x", pool: "team", node: "n1", cidr: netip.MustParsePrefix("10.245.0.0/26"), owner: "before"}})
	if len(f.Nodes[0].PodCIDRs) != 1 {
		t.Error("the block of an earlier Node of that name was taken over")
	}
	if got, err := claims(f, f.Nodes[0], map[string][2]int{}, nil); err != nil || len(got) != 0 {
		t.Errorf("of a pool that is not known any more: %+v, %v", got, err)
	}
}
