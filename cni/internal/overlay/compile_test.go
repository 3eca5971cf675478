package overlay_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
)

var update = flag.Bool("update", false, "write the golden files")

func link(name string, index int32, mtu int, up bool, prefixes ...string) overlay.Link {
	l := overlay.Link{Index: index, Name: name, MTU: mtu, Up: up}
	for _, p := range prefixes {
		l.Prefixes = append(l.Prefixes, netip.MustParsePrefix(p))
	}
	return l
}

func compile(t *testing.T, text string, learned []overlay.Learned, links ...overlay.Link) *overlay.Plan {
	t.Helper()
	f, err := fabric.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	in := overlay.Input{Fabric: f, Self: "n1", Links: links, Learned: learned, Names: overlay.DefaultNames()}
	p := overlay.Compile(in)
	slices.Reverse(f.Nodes)
	if q := overlay.Compile(in); q.String() != p.String() && len(p.Problems) == 0 {
		t.Errorf("another order of nodes, another plan:\n%s\n%s", p, q)
	}
	return p
}

const (
	v4nodes = `
nodes:
- {name: n1, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24]}
- {name: n2, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], mtu: 1400}
- {name: n3, addresses: [198.51.100.3], podCIDRs: [10.244.3.0/24]}
`
	dualNodes = `
nodes:
- {name: n1, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:0:1::/64"]}
- {name: n2, addresses: [192.0.2.2, "2001:db8::2"], podCIDRs: [10.244.2.0/24, "fd00:10:0:2::/64"]}
- {name: n3, addresses: ["2001:db8::3"], podCIDRs: [10.244.3.0/24, "fd00:10:0:3::/64"]}
`
)

func TestGolden(t *testing.T) {
	eth := link("eth0", 2, 1500, true, "192.0.2.1/24", "2001:db8::1/64")
	pool := func(opts string) string {
		return "pools: [{name: p, cidrs: [10.244.0.0/16, 'fd00:10::/48'], " + opts + "}]"
	}
	for name, c := range map[string]struct {
		text    string
		learned []overlay.Learned
		links   []overlay.Link
	}{
		"vxlan":        {text: pool("mode: vxlan") + v4nodes, links: []overlay.Link{eth}},
		"vxlan-direct": {text: pool("direct: true") + v4nodes, links: []overlay.Link{eth}},
		"vxlan-dual":   {text: pool("mode: vxlan, mtu: 1420") + dualNodes, links: []overlay.Link{eth}},
		"host-gw":      {text: pool("mode: host-gw") + v4nodes, links: []overlay.Link{eth}},
		"host-gw-dual": {text: pool("mode: host-gw") + dualNodes, links: []overlay.Link{eth}},
		"link-down":    {text: pool("mode: host-gw") + v4nodes, links: []overlay.Link{link("eth0", 2, 1500, false, "192.0.2.1/24")}},
		"no-link":      {text: pool("direct: true") + v4nodes},
		"segments": {
			text: pool("direct: true") + `
nodes:
- {name: n1, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24], segment: a}
- {name: n2, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], segment: b}
- {name: n3, addresses: [198.51.100.3], podCIDRs: [10.244.3.0/24], segment: a}
`, links: []overlay.Link{eth},
		},
		"bgp": {
			text: pool("mode: bgp") + v4nodes, links: []overlay.Link{eth},
			learned: []overlay.Learned{
				{Prefix: netip.MustParsePrefix("10.244.2.0/24"), NextHops: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.7")}},
				{Prefix: netip.MustParsePrefix("10.244.3.0/24"), NextHops: []netip.Addr{netip.MustParseAddr("fe80::3%eth0")}},
				{Prefix: netip.MustParsePrefix("10.244.1.128/25"), NextHops: []netip.Addr{netip.MustParseAddr("192.0.2.66")}},
				{Prefix: netip.MustParsePrefix("10.244.9.0/24"), NextHops: []netip.Addr{netip.MustParseAddr("203.0.113.9")}},
			},
		},
		"bridge": {text: pool("mode: vxlan") + v4nodes, links: []overlay.Link{eth, link("cni0", 5, 1450, true, "10.244.1.1/24")}},
		"udp":    {text: pool("mode: udp") + dualNodes, links: []overlay.Link{eth}},
		"none":   {text: pool("mode: none") + v4nodes, links: []overlay.Link{eth}},
		"v6-only": {
			text: pool("mode: vxlan") + `
nodes:
- {name: n1, addresses: ["2001:db8::1"], podCIDRs: ["fd00:10:0:1::/64"]}
- {name: n2, addresses: ["2001:db8::2"], podCIDRs: ["fd00:10:0:2::/64"]}
`, links: []overlay.Link{eth},
		},
		"mixed": {
			text: `
pools:
- {name: a, cidrs: [10.1.0.0/16], mode: vxlan}
- {name: b, cidrs: [10.2.0.0/16], mode: host-gw}
nodes:
- {name: n1, addresses: [192.0.2.1], podCIDRs: [10.1.1.0/24, 10.2.1.0/24]}
- {name: n2, addresses: [192.0.2.2], podCIDRs: [10.1.2.0/24, 10.2.2.0/24]}
`, links: []overlay.Link{eth},
		},
		"absent": {text: pool("mode: vxlan") + "\nnodes: []", links: []overlay.Link{eth}},
	} {
		t.Run(name, func(t *testing.T) {
			got := compile(t, c.text, c.learned, c.links...).String()
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || string(want) != got {
				t.Errorf("%s (%v): got\n%s\nwant\n%s", file, err, got, want)
			}
		})
	}
}

// A thousand nodes: one of everything for each, and nothing that grows with their square.
func TestThousandNodes(t *testing.T) {
	f := &fabric.Fabric{Pools: []fabric.Pool{{Name: "p", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}
	for i := range 1000 {
		name := "n1"
		if i > 0 {
			name = "m" + strings.Repeat("x", i%7) + netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String()
		}
		f.Nodes = append(f.Nodes, fabric.Node{
			Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
		})
	}
	p := overlay.Compile(overlay.Input{Fabric: f, Self: "n1", Names: overlay.DefaultNames(), Links: []overlay.Link{link("eth0", 2, 1500, true, "192.168.0.0/16")}})
	if len(p.Neighs) != 999 || len(p.Entries) != 999 || len(p.Routes) != 1000 || len(p.VTEPs) != 999 || len(p.Problems) != 0 {
		t.Errorf("%d neighbours, %d entries, %d routes, %d VTEPs, %v", len(p.Neighs), len(p.Entries), len(p.Routes), len(p.VTEPs), p.Problems)
	}
}
