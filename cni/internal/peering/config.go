// Package peering makes of the model what this node's BGP speaker shall be, and of what the speaker learns routes for
// the plan. It starts nothing itself: package speaker runs the child.
package peering

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/fabric"
)

// Defaults.
const (
	defaultASN     = 64512
	defaultRestart = 120 * time.Second
	retryNodes     = 2 * time.Second // a node that comes back is spoken to soon
	bfdEvery       = 300 * time.Millisecond
	bfdLost        = 3
)

// secrets reads a password file; a field so that compile is pure.
type secrets func(path string) (bgp.Secret, error)

// readSecret takes the first line of a file that only root may read.
func readSecret(path string) (bgp.Secret, error) {
	if path == "" {
		return bgp.Secret{}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return bgp.Secret{}, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return bgp.Secret{}, fmt.Errorf("%s: others than its owner may read it", path)
	}
	b, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	line, _, _ := strings.Cut(string(b), "\n")
	return bgp.NewSecret(line), err
}

// compile is the speaker's configuration on one node; the zero Config where no pool is reached by BGP.
func compile(f *fabric.Fabric, self string, secret secrets) (bgp.Config, error) {
	me, ok := f.Node(self)
	if !ok || !f.SpeaksBGP() {
		return bgp.Config{}, nil
	}
	c := bgp.Config{
		ASN: orElse(f.BGP.ASN, defaultASN), RouterID: routerID(me), Listen: me.Addresses, Pools: f.CIDRs(),
		Restart: bgp.Restart{Time: orElse(time.Duration(f.BGP.RestartSeconds)*time.Second, defaultRestart)},
	}
	for _, b := range me.PodCIDRs {
		if p, ok := f.PoolOf(b); ok && p.EffectiveMode() == fabric.BGPMode {
			c.Announcements = append(c.Announcements, bgp.Announcement{Prefix: b})
		}
	}
	s := bgp.Settings{ASN: c.ASN, Topology: bgp.Topology(f.BGP.Topology)}
	s.Session.ConnectRetry = retryNodes
	if f.BGP.Reflectors != nil {
		s.Reflector = f.BGP.Reflectors
	}
	var errs []error
	var err error
	s.Session.Password, err = secret(f.BGP.PasswordFile)
	errs = append(errs, err)
	for i, p := range f.BGP.Peers {
		e, err := external(p, secret)
		if err != nil {
			errs = append(errs, fmt.Errorf("bgp.peers[%d]: %w", i, err))
		}
		s.External = append(s.External, e)
	}
	nodes := make([]bgp.Node, 0, len(f.Nodes))
	for _, n := range f.Nodes {
		nodes = append(nodes, bgp.Node{Name: n.Name, Addresses: n.Addresses, Labels: n.Labels})
	}
	c.Peers, _ = bgp.Plan(nodes, self, s)
	return c, errors.Join(errs...)
}

func external(p fabric.BGPPeer, secret secrets) (bgp.ExternalPeer, error) {
	out := bgp.ExternalPeer{Nodes: p.Nodes, Peer: bgp.Peer{
		Name: p.Name, Address: p.Address, ASN: p.ASN, GTSM: p.GTSM, Multihop: p.Multihop, MaxPrefixes: p.MaxPrefixes,
	}}
	if p.Labels != nil {
		out.Selector = p.Labels
	}
	if p.BFD {
		out.Peer.BFD = &bgp.BFD{Transmit: bfdEvery, Receive: bfdEvery, Multiplier: bfdLost}
	}
	var err error
	out.Peer.Password, err = secret(p.PasswordFile)
	return out, err
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
