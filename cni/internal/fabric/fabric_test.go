package fabric_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/fabric"
)

const good = `
tunnel: {vni: 7, port: 4789}
pools:
- {name: default, cidrs: [10.244.0.0/16, "fd00:10::/48"], direct: true}
- {name: racks, cidrs: [10.245.0.0/16], mode: host-gw}
nodes:
- {name: n1, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:0:1::/64", 10.245.1.0/24]}
- {name: n2, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], vtepMAC: "02:00:5e:00:00:02", mtu: 1400, segment: a}
`

func TestParse(t *testing.T) {
	f, err := fabric.Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	n1, _ := f.Node("n1")
	n2, _ := f.Node("n2")
	if got := n2.MAC(false).String(); got != "02:00:5e:00:00:02" {
		t.Errorf("MAC that is said: %s", got)
	}
	if m := n1.MAC(false); m != n1.MAC(false) || m[0]&3 != 2 || m == n2.MAC(false) {
		t.Errorf("MAC that is derived: %s", m)
	}
	again := n1
	again.UID = "another"
	if again.MAC(false) == n1.MAC(false) {
		t.Error("a node that was made anew has the old MAC")
	}
	p, ok := f.PoolOf(netip.MustParsePrefix("10.245.1.0/24"))
	if !ok || p.Name != "racks" || p.EffectiveMode() != fabric.HostGW {
		t.Errorf("pool %+v", p)
	}
	if n1.Address(true) != netip.MustParseAddr("2001:db8::1") || n2.Address(true).IsValid() {
		t.Error("addresses by family")
	}
	if d := (fabric.Tunnel{}).WithDefaults(); d.VNI != 1 || d.Port != 8472 {
		t.Errorf("defaults %+v", d)
	}
}

func TestBadFilesAreNamed(t *testing.T) {
	const pools = "pools: [{name: p, cidrs: [10.0.0.0/8, 'fd00::/32']}]\n"
	for _, c := range []struct{ text, want string }{
		{"pool: []", `unknown key, nearest is "pools"`},
		{"pools: [{name: p, cidr: [10.0.0.0/8]}]", `pools[0].cidr: unknown key, nearest is "cidrs"`},
		{"tunnel: {vni: 16777216}", "tunnel.vni"},
		{"pools: [{name: p, cidrs: [10.0.0.1/8]}]", "want 10.0.0.0/8"},
		{"pools: [{name: p}]", "pools[0].cidrs: there is none"},
		{"pools: [{name: p, cidrs: [0.0.0.0/0]}]", "cannot be pods' addresses"},
		{"pools: [{name: p, cidrs: [10.0.0.0/8], mode: hostgw}]", `nearest is "host-gw"`},
		{"pools: [{name: p, cidrs: [10.0.0.0/8], mode: bgp, direct: true}]", "pools[0].direct"},
		{"pools: [{name: p, cidrs: ['fd00::/32'], mtu: 1000}]", "which needs 1280"},
		{"pools: [{name: p, cidrs: [10.0.0.0/8]}, {name: q, cidrs: [10.1.0.0/16]}]", "overlaps 10.0.0.0/8"},
		{"pools: [{name: p, cidrs: [10.0.0.0/8]}, {name: p, cidrs: [11.0.0.0/8]}]", "another pool"},
		{pools + "nodes: [{name: A}]", `"A" is no name`},
		{pools + "nodes: [{name: a}, {name: a, uid: x}]", "also that of nodes[0]"},
		{pools + "nodes: [{name: a, addresses: [127.0.0.1]}]", "no address that other nodes can reach"},
		{pools + "nodes: [{name: a, addresses: [192.0.2.1, 192.0.2.2]}]", "more than one of a family"},
		{pools + "nodes: [{name: a, addresses: [192.0.2.1]}, {name: b, addresses: [192.0.2.1]}]", "nodes[1].addresses: 192.0.2.1"},
		{pools + "nodes: [{name: a, podCIDRs: [11.0.0.0/24]}]", "in no pool"},
		{pools + "nodes: [{name: a, podCIDRs: [10.0.0.0/24]}, {name: b, podCIDRs: [10.0.0.128/25]}]", "overlaps 10.0.0.0/24"},
		{pools + "nodes: [{name: a, vtepMAC: '01:00:00:00:00:01'}]", "no unicast"},
		{pools + "nodes: [{name: a, vtepMAC: '02-00'}]", "no Ethernet address"},
		{pools + "nodes: [{name: a, mtu: 100}]", "nodes[0].mtu"},
	} {
		if _, err := fabric.Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %q", c.text, err, c.want)
		}
	}
}

// Ten thousand nodes are checked in a fraction of a second.
func TestValidateScales(t *testing.T) {
	f := &fabric.Fabric{Pools: []fabric.Pool{{Name: "p", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}
	for i := range 10_000 {
		f.Nodes = append(f.Nodes, fabric.Node{
			Name: fmt.Sprintf("n%d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
		})
	}
	if err := f.Validate(); err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Fuzz(func(t *testing.T, text string) {
		if fab, err := fabric.Parse([]byte(text)); err == nil {
			if err := fab.Validate(); err != nil {
				t.Errorf("accepted and then refused: %v", err)
			}
		}
	})
}

// TestSalvage: nodes that are wrong are taken out, and no others.
func TestSalvage(t *testing.T) {
	prefix := netip.MustParsePrefix
	node := func(name, addr, block string) fabric.Node {
		return fabric.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, PodCIDRs: []netip.Prefix{prefix(block)}}
	}
	twin := node("twin", "192.0.2.8", "10.0.8.0/24")
	twin.VTEPMAC = node("a", "192.0.2.1", "10.0.1.0/24").MAC(false)
	f := &fabric.Fabric{
		Pools: []fabric.Pool{{Name: "p", CIDRs: []netip.Prefix{prefix("10.0.0.0/8")}}},
		Nodes: []fabric.Node{
			node("b", "192.0.2.2", "10.0.2.0/24"), node("a", "192.0.2.1", "10.0.1.0/24"),
			node("same-address", "192.0.2.1", "10.0.3.0/24"), node("overlaps", "192.0.2.4", "10.0.0.0/22"),
			node("loop", "127.0.0.1", "10.0.5.0/24"), node("foreign", "192.0.2.6", "172.16.0.0/24"), twin,
		},
	}
	remarks := f.Salvage()
	if len(f.Nodes) != 2 || len(remarks) != 5 || f.Validate() != nil {
		t.Errorf("%d nodes stay, %q, %v", len(f.Nodes), remarks, f.Validate())
	}
	for i, want := range []string{"foreign: ", "loop: ", "overlaps: block 10.0.0.0/22", "same-address: address 192.0.2.1", "twin: VTEP MAC"} {
		if len(remarks) > i && !strings.Contains(remarks[i], want) {
			t.Errorf("%q, want %q", remarks[i], want)
		}
	}
}
