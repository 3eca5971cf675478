package bgp

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

// MeshLimit is the number of nodes up to which each speaks with each. Beyond, some reflect for all: 1,000 nodes in a
// mesh are 499,500 sessions, with three reflectors 2,994.
const MeshLimit = 100

// reflectorCount are elected where none is named: one may be down for repair while another fails.
const reflectorCount = 3

// Node is what the plan needs of a node.
type Node struct {
	// Name is unique and what elections are decided by.
	Name string
	// Addresses are those that other nodes reach, at most one of each family is used, the first.
	Addresses []netip.Addr
	// ASN of the node; 0 means Settings.ASN.
	ASN uint32
	// Labels are matched by selectors.
	Labels map[string]string
}

// Topology is how the nodes of a cluster speak with each other.
type Topology string

// Auto is Mesh up to MeshLimit nodes and Reflectors above, or wherever reflectors are selected.
const (
	Auto       Topology = ""
	Mesh       Topology = "mesh"
	Reflectors Topology = "reflectors"
	Alone      Topology = "none" // with external peers only
)

// Selector matches nodes that have all of its labels, with these values; an empty one matches all nodes.
type Selector map[string]string

// Matches says whether labels have all that s asks for.
func (s Selector) Matches(labels map[string]string) bool {
	for k, v := range s {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Settings are the cluster's wishes.
type Settings struct {
	ASN      uint32
	Topology Topology
	// Reflector selects the nodes that reflect; nil elects three by a hash of their names where some are needed.
	Reflector Selector
	// External are peers outside of the cluster, each for the nodes that it selects.
	External []ExternalPeer
	// Session is what sessions between nodes have in common: password, GTSM, BFD, timers. Its address, ASN, families
	// and reflection are decided here.
	Session Peer
}

// ExternalPeer is a peer of some nodes: those of Nodes by name, and those that Selector matches, where it is not nil.
type ExternalPeer struct {
	Peer     Peer
	Nodes    []string
	Selector Selector
}

// For says whether e is a peer of n.
func (e ExternalPeer) For(n Node) bool {
	return slices.Contains(e.Nodes, n.Name) || e.Selector != nil && e.Selector.Matches(n.Labels)
}

// Plan are the peers of the node named self, in the order of their addresses, and whether it reflects. It depends on
// nothing but its arguments and not on their order, so that every node comes to the same plan. A name that is not
// among nodes has no peers.
func Plan(nodes []Node, self string, s Settings) (peers []Peer, reflects bool) {
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == self })
	if i < 0 {
		return nil, false
	}
	me, reflectors := nodes[i], reflectorsOf(nodes, s)
	reflects = reflectors[self]
	for _, n := range nodes {
		if n.Name == self || s.Topology == Alone {
			continue
		}
		if len(reflectors) > 0 && !reflects && !reflectors[n.Name] {
			continue
		}
		peers = append(peers, sessions(me, n, s, reflects && !reflectors[n.Name])...)
	}
	taken := map[netip.Addr]bool{}
	for _, e := range s.External {
		if e.For(me) && !taken[e.Peer.Address] {
			taken[e.Peer.Address] = true
			peers = append(peers, e.Peer)
		}
	}
	slices.SortStableFunc(peers, func(a, b Peer) int { return a.Address.Compare(b.Address) })
	return peers, reflects
}

// sessions are those between two nodes: one for each family that both have, which carries that family; and where they
// have IPv6 alone, IPv4 with it (RFC 8950).
func sessions(me, other Node, s Settings, client bool) []Peer {
	var out []Peer
	for _, fam := range []Family{IPv4, IPv6} {
		mine, theirs := first(me.Addresses, fam), first(other.Addresses, fam)
		if !mine.IsValid() || !theirs.IsValid() {
			continue
		}
		p := s.Session
		p.Name, p.Address, p.Local = other.Name, theirs, mine
		p.ASN = orElse(other.ASN, s.ASN)
		p.Families = []Family{fam}
		if fam == IPv6 && len(out) == 0 {
			p.Families, p.ExtendedNextHop = []Family{IPv4, IPv6}, true
		}
		p.ReflectorClient = client && p.ASN == orElse(me.ASN, s.ASN)
		p.Hold = orElse(p.Hold, 30*time.Second)
		// The node with the lower address connects, so that no two connections collide on every start.
		p.Passive = theirs.Less(mine)
		out = append(out, p)
	}
	return out
}

func first(all []netip.Addr, fam Family) netip.Addr {
	for _, a := range all {
		if FamilyOf(a) == fam {
			return a
		}
	}
	return netip.Addr{}
}

// reflectorsOf are the names of the nodes that reflect; none in a mesh.
func reflectorsOf(nodes []Node, s Settings) map[string]bool {
	out := map[string]bool{}
	if s.Topology == Mesh || s.Topology == Alone || s.Topology == Auto && s.Reflector == nil && len(nodes) <= MeshLimit {
		return out
	}
	if s.Reflector != nil {
		for _, n := range nodes {
			if s.Reflector.Matches(n.Labels) {
				out[n.Name] = true
			}
		}
		if len(out) > 0 || s.Topology == Auto && len(nodes) <= MeshLimit {
			return out
		}
	}
	// The lowest hashes win: a node that comes or goes changes the election only if it wins or won.
	byHash := slices.SortedFunc(slices.Values(nodes), func(a, b Node) int {
		return cmp.Or(cmp.Compare(hash(a.Name), hash(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	for _, n := range byHash[:min(reflectorCount, len(byHash))] {
		out[n.Name] = true
	}
	return out
}

func hash(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails, says hash.Hash
	return h.Sum64()
}
