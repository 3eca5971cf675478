package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/internal/nearest"
)

// maxRestart is the width of the field in seconds (RFC 4724 §3).
const maxRestart = 4095

// maxLongLived is that of RFC 9494 §3.
const maxLongLived = 1<<24 - 1

// maxPeers bounds the peers outside of the cluster.
const maxPeers = 2000

// Topologies are the values of [BGP.Topology] that are not empty.
func Topologies() []string { return []string{"mesh", "reflectors", "none"} }

// CheckTopology is what is wrong with one; empty is good.
func CheckTopology(t string) error {
	if t == "" || slices.Contains(Topologies(), t) {
		return nil
	}
	return fmt.Errorf("%q is none of %v, nearest is %q", t, Topologies(), nearest.To(t, Topologies()))
}

// CheckASN is what is wrong with an autonomous system; 0 is for the caller to judge.
func CheckASN(n uint32) error {
	switch n {
	case 23456, 65535, 4294967295:
		return fmt.Errorf("%d is reserved (RFC 6793, 7300)", n)
	}
	return nil
}

func (c *checker) bgp(f *Fabric) {
	b := f.BGP
	if err := CheckTopology(b.Topology); err != nil {
		c.bad("bgp.topology: %w", err)
	}
	if err := CheckASN(b.ASN); err != nil {
		c.bad("bgp.asn: %w", err)
	}
	if b.RestartSeconds < 0 || b.RestartSeconds > maxRestart {
		c.bad("bgp.restartSeconds: %d is not between 0 and %d", b.RestartSeconds, maxRestart)
	}
	if b.LongLivedSeconds < 0 || b.LongLivedSeconds > maxLongLived {
		c.bad("bgp.longLivedSeconds: %d is not between 0 and %d", b.LongLivedSeconds, maxLongLived)
	}
	for i, r := range b.ServiceRanges {
		key := fmt.Sprintf("bgp.serviceRanges[%d]", i)
		c.prefix(key, r)
		for _, p := range f.Pools {
			for _, cidr := range p.CIDRs {
				if r.IsValid() && r.Overlaps(cidr) {
					c.bad("%s: %s overlaps %s of pool %s", key, r, cidr, p.Name)
				}
			}
		}
	}
	for i, s := range b.Services {
		if err := s.check(b); err != nil {
			c.bad("bgp.services[%d].%w", i, err)
		}
	}
	if len(b.Peers) > maxPeers {
		c.bad("bgp.peers: %d, at most %d", len(b.Peers), maxPeers)
	}
	for i, p := range b.Peers {
		if err := p.check(f); err != nil {
			c.bad("bgp.peers[%d].%w", i, err)
		}
	}
}

// check is the first thing that is wrong with a service; the error begins with the key.
func (s BGPService) check(b BGP) error {
	switch {
	case !s.Prefix.IsValid():
		return errors.New("prefix: missing")
	case s.Prefix != s.Prefix.Masked():
		return fmt.Errorf("prefix: %s has bits behind its prefix, want %s", s.Prefix, s.Prefix.Masked())
	case !slices.ContainsFunc(b.ServiceRanges, func(r netip.Prefix) bool { return Within(s.Prefix, r) }):
		return fmt.Errorf("prefix: %s is in none of bgp.serviceRanges", s.Prefix)
	}
	return nil
}

// check is the first thing that is wrong with a peer; the error begins with the key. Two peers may have one address, as
// the routers of racks have: whether one node has both is seen on the node.
func (p BGPPeer) check(f *Fabric) error {
	a := p.Address
	switch {
	case !a.IsValid():
		return errors.New("address: missing")
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6():
		return fmt.Errorf("address: %s is no host's", a)
	case a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "":
		return fmt.Errorf("address: %s is link-local: name the link, as in %s%%eth0", a, a)
	case p.ASN == 0:
		return errors.New("asn: missing")
	case p.GTSM > 0 && p.Multihop > 0:
		return errors.New("multihop: cannot be together with gtsm")
	case p.Multihop > 0 && p.ASN == f.BGP.LocalASN():
		return fmt.Errorf("multihop: is for peers of another AS than %d: others may be any number of hops away", p.ASN)
	}
	if err := CheckASN(p.ASN); err != nil {
		return fmt.Errorf("asn: %w", err)
	}
	for _, n := range f.Nodes {
		if slices.ContainsFunc(n.Addresses, func(own netip.Addr) bool { return own == a }) {
			return fmt.Errorf("address: %s is that of node %s", a, n.Name)
		}
	}
	return nil
}

// strangers are names in peers' lists that no node has. A cluster's objects may come and go in any order, so it is no
// part of Validate.
func (f *Fabric) strangers() error {
	known := make([]string, 0, len(f.Nodes))
	for _, n := range f.Nodes {
		known = append(known, n.Name)
	}
	var c checker
	check := func(at string, names []string) {
		for j, n := range names {
			if !slices.Contains(known, n) {
				c.bad("%s.nodes[%d]: there is no node %q, nearest is %q", at, j, n, nearest.To(n, known))
			}
		}
	}
	for i, p := range f.BGP.Peers {
		check(fmt.Sprintf("bgp.peers[%d]", i), p.Nodes)
	}
	for i, s := range f.BGP.Services {
		check(fmt.Sprintf("bgp.services[%d]", i), s.Nodes)
	}
	return errors.Join(c.errs...)
}

// salvagePeers takes out the peers that are wrong.
func (f *Fabric) salvagePeers() (remarks []string) {
	f.BGP.Peers = slices.DeleteFunc(slices.Clone(f.BGP.Peers), func(p BGPPeer) bool {
		err := p.check(f)
		if err != nil {
			remarks = append(remarks, fmt.Sprintf("BGP peer %s: %v", p.Name, err))
		}
		return err != nil
	})
	return remarks
}
