// Package peering makes of the model what this node's BGP speaker shall be, and of what the speaker learns routes for
// the plan. It starts nothing itself: package speaker runs the child.
package peering

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/fabric"
)

// Defaults.
const (
	defaultRestart = 120 * time.Second
	retryNodes     = 2 * time.Second // a node that comes back is spoken to soon
	bfdEvery       = 300 * time.Millisecond
	bfdLost        = 3
)

// compile is the speaker's configuration on one node; the zero Config where no pool is reached by BGP. A peer that cannot
// be had is left out and named in remarks; so are the other nodes where their key cannot be read, for a session without it
// would be open to anyone. An error is about the node itself: there is no configuration then.
func compile(f *fabric.Fabric, self string, secret secrets) (c bgp.Config, remarks []string, err error) {
	me, ok := f.Node(self)
	if !ok || !f.SpeaksBGP() {
		return bgp.Config{}, nil, nil
	}
	c = bgp.Config{
		ASN: f.BGP.LocalASN(), RouterID: routerID(me), Listen: me.Addresses, Pools: f.CIDRs(), Services: f.BGP.ServiceRanges,
		Restart: bgp.Restart{
			Time:      orElse(time.Duration(f.BGP.RestartSeconds)*time.Second, defaultRestart),
			LongLived: time.Duration(f.BGP.LongLivedSeconds) * time.Second,
		},
	}
	for _, b := range me.PodCIDRs {
		if p, ok := f.PoolOf(b); ok && p.EffectiveMode() == fabric.BGPMode {
			c.Announcements = append(c.Announcements, bgp.Announcement{Prefix: b})
		}
	}
	c.Announcements = append(c.Announcements, services(f, self)...)
	if err := c.Validate(); err != nil {
		return bgp.Config{}, nil, err
	}
	s := bgp.Settings{ASN: c.ASN, Topology: bgp.Topology(f.BGP.Topology)}
	s.Session.ConnectRetry = retryNodes
	if len(f.BGP.Reflectors) > 0 {
		s.Reflector = f.BGP.Reflectors
	}
	if s.Session.Password, err = secret(f.BGP.PasswordFile); err != nil {
		remarks = append(remarks, fmt.Sprintf("bgp.passwordFile: no session with other nodes: %v", err))
		s.Topology = bgp.Alone
	}
	nodes := make([]bgp.Node, 0, len(f.Nodes))
	for _, n := range f.Nodes {
		nodes = append(nodes, bgp.Node{Name: n.Name, Addresses: n.Addresses, Labels: n.Labels})
	}
	var more []string
	s.External, more = externals(f, me, c, secret)
	c.Peers, _ = bgp.Plan(nodes, self, s)
	return c, append(remarks, more...), nil
}

// services are what this node tells of services. Two may share an address, as Services that share a load balancer's do.
func services(f *fabric.Fabric, self string) (out []bgp.Announcement) {
	told := map[netip.Prefix]bool{}
	for _, s := range f.BGP.Services {
		if (len(s.Nodes) == 0 || slices.Contains(s.Nodes, self)) && !told[s.Prefix] {
			told[s.Prefix] = true
			out = append(out, bgp.Announcement{Prefix: s.Prefix})
		}
	}
	return out
}

// externals are the peers outside of the cluster that are this node's and can be had, and what is wrong with the others of
// this node. The key of a peer that is not this node's is not looked at.
func externals(f *fabric.Fabric, me fabric.Node, c bgp.Config, secret secrets) (out []bgp.ExternalPeer, remarks []string) {
	taken := map[netip.Addr]string{}
	for _, n := range f.Nodes {
		for _, a := range n.Addresses {
			taken[a] = "node " + n.Name
		}
	}
	for i, p := range f.BGP.Peers {
		e := external(p)
		if !e.For(bgp.Node{Name: me.Name, Labels: me.Labels}) {
			continue
		}
		name := orElse(p.Name, p.Address.String())
		key, err := secret(p.PasswordFile)
		e.Peer.Password = key
		if err == nil {
			e.Peer.Import, err = rules("import", p.Import)
		}
		if err == nil {
			e.Peer.Export, err = rules("export", p.Export)
		}
		if o := taken[p.Address]; err == nil && o != "" {
			err = fmt.Errorf("%s is the address of %s", p.Address, o)
		}
		if err == nil {
			err = alone(c, e.Peer)
		}
		if err != nil {
			remarks = append(remarks, fmt.Sprintf("bgp.peers[%d] (%s): %v", i, name, err))
			continue
		}
		taken[p.Address] = "peer " + name
		out = append(out, e)
	}
	return out, remarks
}

// alone is what is wrong with a peer by itself; c has none and is valid.
func alone(c bgp.Config, p bgp.Peer) error {
	c.Peers = []bgp.Peer{p}
	if err := c.Validate(); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "peers[0].", ""))
	}
	return nil
}

func external(p fabric.BGPPeer) bgp.ExternalPeer {
	out := bgp.ExternalPeer{Nodes: p.Nodes, Peer: bgp.Peer{
		Name: p.Name, Address: p.Address, ASN: p.ASN, GTSM: p.GTSM, Multihop: p.Multihop, MaxPrefixes: p.MaxPrefixes,
	}}
	if len(p.Labels) > 0 || len(p.Nodes) == 0 {
		out.Selector = p.Labels
		if out.Selector == nil {
			out.Selector = bgp.Selector{} // of all nodes
		}
	}
	if p.BFD {
		out.Peer.BFD = &bgp.BFD{Transmit: bfdEvery, Receive: bfdEvery, Multiplier: bfdLost}
	}
	return out
}

// routerID is the node's IPv4 address, or four bytes of a hash of its name where it has none (RFC 6286).
func routerID(n fabric.Node) netip.Addr {
	if a := n.Address(false); a.IsValid() {
		return a
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(n.Name)) // never fails, says hash.Hash
	v := h.Sum32() | 1             // not zero
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
