package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/datapath"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// Trace is the path of a packet from one address to another as this node's kernel would send it now, a hop a line,
// each with the route, entry or rule that decides. What another node does is said as the fabric has it.
func (a *Agent) Trace(from, to netip.Addr) (string, error) {
	a.mu.Lock()
	f := a.live.fabric
	a.mu.Unlock()
	if f == nil {
		return "", fmt.Errorf("there is no fabric yet")
	}
	if from.Is4() != to.Is4() {
		return "", fmt.Errorf("%s and %s are of different families", from, to)
	}
	look, err := datapath.OpenLookup()
	if err != nil {
		return "", err
	}
	defer look.Close() //nolint:errcheck // nothing is written
	t := tracer{f: f, self: a.conf.Node, look: look}
	return t.run(from, to)
}

type tracer struct {
	f    *fabric.Fabric
	self string
	look *datapath.Lookup
	b    strings.Builder
	n    int
}

func (t *tracer) hop(format string, args ...any) {
	t.n++
	fmt.Fprintf(&t.b, "%2d  %s\n", t.n, fmt.Sprintf(format, args...))
}

// place says whose an address is: "pod of n1", "node n1", "outside".
func (t *tracer) place(a netip.Addr) (node, what string) {
	for _, n := range t.f.Nodes {
		if slices.Contains(n.Addresses, a) {
			return n.Name, "node " + n.Name
		}
		for _, b := range n.PodCIDRs {
			if b.Contains(a) {
				return n.Name, "pod of " + n.Name
			}
		}
	}
	if slices.ContainsFunc(t.f.CIDRs(), func(c netip.Prefix) bool { return c.Contains(a) }) {
		return "", "in a pool, but in no node's block"
	}
	return "", "outside"
}

func (t *tracer) run(from, to netip.Addr) (string, error) {
	fromNode, fromWhat := t.place(from)
	toNode, toWhat := t.place(to)
	fmt.Fprintf(&t.b, "%s (%s) → %s (%s), as node %s sees it\n", from, fromWhat, to, toWhat, t.self)
	if fromNode != t.self && toNode != t.self {
		return t.b.String(), fmt.Errorf("neither end is on node %s: ask berth-netd of %s", t.self, orElse(fromNode, "another node"))
	}
	if fromNode != t.self {
		t.hop("%s: sends it; ask berth-netd there how", fromWhat)
		t.arrives(from)
	} else if strings.HasPrefix(fromWhat, "pod") {
		r, err := t.look.Route(from)
		if err != nil {
			return "", err
		}
		t.hop("pod: its default route leads to this node")
		t.hop("link %s: table berth-node, chain guard: source %s must be this link's  [%s]", r.Dev, from, r)
	}
	err := t.leaves(from, to, toNode)
	return t.b.String(), err
}

// arrives is how a packet of another node comes in.
func (t *tracer) arrives(from netip.Addr) {
	r, err := t.look.Route(from)
	if err == nil && r.Tunnel {
		t.hop("link %s: table %s, chain tunnel: the outer source must be a VTEP of the fabric", r.Dev, datapath.TableName)
	}
}

// leaves is the routing decision and what comes after it.
func (t *tracer) leaves(from, to netip.Addr, toNode string) error {
	r, err := t.look.Route(to)
	if err != nil {
		return err
	}
	t.hop("route: %s", r)
	switch {
	case r.Unreachable:
		t.hop("ends here, with ICMP unreachable: no pod on this node has %s", to)
		return nil
	case r.Local:
		t.hop("delivered to this node")
		return nil
	case r.Tunnel:
		return t.tunnel(r, toNode)
	}
	if pool, ok := t.poolOf(from); ok && toNode != t.self && !pool.NoMasquerade && !slices.ContainsFunc(t.f.CIDRs(), func(c netip.Prefix) bool { return c.Contains(to) }) {
		t.hop("table berth-node, chain source: %s is in no pool, so the source becomes this node's address", to)
	}
	if toNode == t.self {
		t.hop("link %s: delivered to the pod", r.Dev)
		return nil
	}
	if r.Dev == overlay.UDPName {
		t.hop("link %s: wrapped in UDP by berth-netd, for the node whose block has %s", r.Dev, to)
		return nil
	}
	t.hop("link %s: leaves this node without a tunnel for %s", r.Dev, orElse(r.Via(), to.String()))
	if toNode != "" {
		t.hop("node %s: its own route for %s decides", toNode, to)
	}
	return nil
}

func (t *tracer) poolOf(a netip.Addr) (fabric.Pool, bool) {
	return t.f.PoolOf(netip.PrefixFrom(a, a.BitLen()))
}

// tunnel is what a VXLAN device does with a packet.
func (t *tracer) tunnel(r datapath.Found, toNode string) error {
	w, err := t.look.Wrapped(r)
	if err != nil {
		return err
	}
	t.hop("neighbour %s dev %s: %s, permanent", r.Via(), r.Dev, w.MAC)
	t.hop("forwarding entry %s dev %s: VTEP %s; wrapped in UDP port %d, VNI %d, at most %d bytes inside", w.MAC, r.Dev, w.VTEP, w.Port, w.VNI, w.MTU)
	outer, err := t.look.Route(w.VTEP)
	if err != nil {
		return err
	}
	t.hop("route of the outer packet: %s", outer)
	if toNode != "" {
		t.hop("node %s: takes it if %s's address is among its VTEPs, unwraps it, and its own route decides", toNode, t.self)
	}
	return nil
}
