package fabric_test

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/fabric"
)

const bgpText = `
pools: [{name: p, cidrs: [10.244.0.0/16], mode: bgp}]
nodes:
- {name: n1, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24]}
bgp: `

func TestBGPIsChecked(t *testing.T) {
	peer := func(s string) string { return "{peers: [{name: x, " + s + "}]}" }
	for _, c := range []struct{ bgp, want string }{
		{"{topology: reflecters}", `bgp.topology: "reflecters" is none of [mesh reflectors none], nearest is "reflectors"`},
		{"{topology: Mesh}", `nearest is "mesh"`},
		{"{asn: 65535}", "bgp.asn: 65535 is reserved"},
		{"{restartSeconds: 4096}", "bgp.restartSeconds: 4096 is not between 0 and 4095"},
		{"{restartSeconds: -1}", "bgp.restartSeconds: -1"},
		{"{longLivedSeconds: 16777216}", "bgp.longLivedSeconds: 16777216"},
		{"{serviceRanges: [10.96.0.1/12]}", "bgp.serviceRanges[0]: 10.96.0.1/12 has bits behind its prefix, want 10.96.0.0/12"},
		{"{serviceRanges: [10.244.128.0/17]}", "overlaps 10.244.0.0/16 of pool p"},
		{"{services: [{name: a, prefix: 10.96.0.1/32}]}", "bgp.services[0].prefix: 10.96.0.1/32 is in none of bgp.serviceRanges"},
		{"{serviceRanges: [10.96.0.0/12], services: [{name: a}]}", "bgp.services[0].prefix: missing"},
		{"{serviceRanges: [10.96.0.0/12], services: [{name: a, prefix: 10.96.0.1/32, nodes: [m1]}]}", "bgp.services[0].nodes[0]: there is no node"},
		{peer("asn: 65000"), "bgp.peers[0].address: missing"},
		{peer("address: 224.0.0.1, asn: 65000"), "bgp.peers[0].address: 224.0.0.1 is no host's"},
		{peer("address: fe80::1, asn: 65000"), "as in fe80::1%eth0"},
		{peer("address: 192.0.2.1, asn: 65000"), "is that of node n1"},
		{peer("address: 192.0.2.9"), "bgp.peers[0].asn: missing"},
		{peer("address: 192.0.2.9, asn: 23456"), "bgp.peers[0].asn: 23456"},
		{peer("address: 192.0.2.9, asn: 65000, gtsm: 1, multihop: 2"), "bgp.peers[0].multihop: cannot be together"},
		{peer("address: 192.0.2.9, asn: 64512, multihop: 2"), "bgp.peers[0].multihop: is for peers of another AS"},
		{peer("address: 192.0.2.9, asn: 65000, nodes: [n1, m1]"), `bgp.peers[0].nodes[1]: there is no node "m1", nearest is "n1"`},
	} {
		if _, err := fabric.Parse([]byte(bgpText + c.bgp)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.bgp, err, c.want)
		}
	}
	for _, good := range []string{
		"{topology: mesh, restartSeconds: 4095}", "{topology: none}", "{serviceRanges: [10.96.0.0/12], services: [{name: a, prefix: 10.96.0.0/16}]}", "{topology: reflectors}", "{topology: ''}",
		peer("address: 192.0.2.9, asn: 64512, gtsm: 3, nodes: [n1]"), peer(`address: "fe80::1%eth0", asn: 65000, labels: {}`),
	} {
		if _, err := fabric.Parse([]byte(bgpText + good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

// TestSalvagePeers: in a cluster one peer that is wrong keeps nothing else away, and one for a node that is not there
// waits for it.
func TestSalvagePeers(t *testing.T) {
	f, err := fabric.Parse([]byte(bgpText + "{peers: [{name: a, address: 192.0.2.9, asn: 65000}]}"))
	if err != nil {
		t.Fatal(err)
	}
	bad, early := f.BGP.Peers[0], f.BGP.Peers[0]
	bad.Name, bad.ASN = "b", 23456
	early.Name, early.Nodes = "c", []string{"n7"}
	f.BGP.Peers = append(f.BGP.Peers, bad, early)
	remarks := f.Salvage()
	if len(remarks) != 1 || !strings.Contains(remarks[0], "BGP peer b: asn: 23456") || len(f.BGP.Peers) != 2 || f.Validate() != nil {
		t.Errorf("%q, %+v, %v", remarks, f.BGP.Peers, f.Validate())
	}
}
