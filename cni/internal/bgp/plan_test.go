package bgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
)

func cluster(n int) []Node {
	var out []Node
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		out = append(out, Node{Name: fmt.Sprintf("node-%d", i), Addresses: []netip.Addr{a}, Labels: map[string]string{"rack": fmt.Sprint(i % 4)}})
	}
	return out
}

// checkPlan says that every session is wanted by both ends, that just one of them connects, that the ends agree on
// families, and how many sessions there are.
func checkPlan(t *testing.T, nodes []Node, s Settings) (sessions, reflectors int) {
	t.Helper()
	type end struct{ from, to netip.Addr }
	all := map[end]Peer{}
	for _, n := range nodes {
		peers, reflects := Plan(nodes, n.Name, s)
		if reflects {
			reflectors++
		}
		for _, p := range peers {
			all[end{p.Local, p.Address}] = p
		}
	}
	for e, p := range all {
		back, ok := all[end{e.to, e.from}]
		if !ok {
			t.Fatalf("%v speaks with %v, not the other way", e.from, e.to)
		}
		if p.Passive == back.Passive {
			t.Fatalf("%v and %v: both or neither connect", e.from, e.to)
		}
		if !reflect.DeepEqual(p.Families, back.Families) || p.ReflectorClient && back.ReflectorClient {
			t.Fatalf("%v and %v do not agree: %+v %+v", e.from, e.to, p, back)
		}
	}
	return len(all) / 2, reflectors
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name                 string
		nodes                int
		s                    Settings
		sessions, reflectors int
	}{
		{"a mesh", 10, Settings{}, 45, 0},
		{"100 are a mesh", 100, Settings{}, 4950, 0},
		{"101 have three reflectors", 101, Settings{}, 3 + 3*98, 3},
		{"a mesh however many", 120, Settings{Topology: Mesh}, 7140, 0},
		{"reflectors however few", 5, Settings{Topology: Reflectors}, 3 + 3*2, 3},
		{"selected reflectors", 8, Settings{Reflector: Selector{"rack": "1"}}, 1 + 2*6, 2},
		{"none that is selected", 8, Settings{Reflector: Selector{"rack": "9"}}, 28, 0},
		{"none that is selected, but some are needed", 150, Settings{Reflector: Selector{"rack": "9"}}, 3 + 3*147, 3},
		{"alone", 8, Settings{Topology: Alone}, 0, 0},
	} {
		c.s.ASN = 64512
		if s, r := checkPlan(t, cluster(c.nodes), c.s); s != c.sessions || r != c.reflectors {
			t.Errorf("%s: %d sessions and %d reflectors, want %d and %d", c.name, s, r, c.sessions, c.reflectors)
		}
	}
}

func TestPlanDoesNotDependOnOrder(t *testing.T) {
	nodes := cluster(130)
	want, _ := Plan(nodes, "node-7", Settings{ASN: 64512})
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	if got, _ := Plan(nodes, "node-7", Settings{ASN: 64512}); !reflect.DeepEqual(got, want) {
		t.Errorf("another order, another plan:\n%v\n%v", got, want)
	}
}

func TestElectionIsStable(t *testing.T) {
	nodes := cluster(200)
	before := reflectorsOf(nodes, Settings{})
	kept := nodes[:0:0]
	for _, n := range nodes {
		if len(kept) < 150 || before[n.Name] {
			kept = append(kept, n)
		}
	}
	if after := reflectorsOf(kept, Settings{}); !reflect.DeepEqual(before, after) {
		t.Errorf("nodes that lost left, and the winners changed: %v, %v", before, after)
	}
}

func TestPlanFamiliesAndExternal(t *testing.T) {
	nodes := []Node{
		{Name: "dual", Addresses: []netip.Addr{ip("10.0.0.1"), ip("fd00::1")}, Labels: map[string]string{"edge": "yes"}},
		{Name: "dual2", Addresses: []netip.Addr{ip("fd00::2"), ip("10.0.0.2")}},
		{Name: "six", Addresses: []netip.Addr{ip("fd00::3")}, ASN: 64999},
	}
	s := Settings{ASN: 64512, Session: Peer{Password: NewSecret("k"), GTSM: 1}, External: []ExternalPeer{
		{Peer: Peer{Address: ip("10.0.0.254"), ASN: 65000}, Selector: Selector{"edge": "yes"}},
		{Peer: Peer{Address: ip("10.0.0.253"), ASN: 65000}, Nodes: []string{"dual2"}},
	}}
	checkPlan(t, nodes, Settings{ASN: 64512})
	peers, _ := Plan(nodes, "dual", s)
	if len(peers) != 4 {
		t.Fatalf("%+v", peers)
	}
	got := map[string]Peer{}
	for _, p := range peers {
		got[p.Address.String()] = p
	}
	if p := got["10.0.0.2"]; !reflect.DeepEqual(p.Families, []Family{IPv4}) || p.Password.Reveal() != "k" || p.GTSM != 1 {
		t.Errorf("%+v", p)
	}
	if p := got["fd00::2"]; !reflect.DeepEqual(p.Families, []Family{IPv6}) || p.ExtendedNextHop {
		t.Errorf("%+v", p)
	}
	if p := got["fd00::3"]; len(p.Families) != 2 || !p.ExtendedNextHop || p.ASN != 64999 {
		t.Errorf("IPv4 cannot reach a node that has IPv6 alone: %+v", p)
	}
	if _, ok := got["10.0.0.254"]; !ok {
		t.Error("the selected external peer is missing")
	}
	if peers, _ := Plan(nodes, "nobody", s); peers != nil {
		t.Errorf("a stranger's peers: %v", peers)
	}
	c := Config{ASN: 64512, RouterID: ip("1.1.1.1"), Peers: peers}
	if err := c.Validate(); err != nil {
		t.Errorf("a plan that is not valid: %v", err)
	}
}
