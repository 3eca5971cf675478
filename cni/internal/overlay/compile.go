package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// What VXLAN adds to a packet, in bytes: outer IP header, UDP 8, VXLAN 8, inner Ethernet 14.
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
	// What plain UDP adds: outer IP header, UDP 8.
	udpOverhead4 = 20 + 8
	udpOverhead6 = 40 + 8
)

// Compile decides. What cannot be had becomes a problem of the plan and takes nothing else with it: a fabric without
// this node gives an empty plan.
func Compile(in Input) *Plan {
	c := &compiler{in: in, plan: &Plan{}, tunnel: in.Fabric.Tunnel.WithDefaults(), used: map[bool]bool{}}
	self, ok := in.Fabric.Node(in.Self)
	if !ok {
		c.problem("node %q is not in the fabric", in.Self)
		return c.plan
	}
	c.self = self
	for _, b := range self.PodCIDRs {
		c.own(b)
	}
	for _, n := range in.Fabric.Nodes {
		if n.Name != in.Self && len(n.PodCIDRs) > 0 {
			c.peer(n)
		}
	}
	c.learned()
	c.udpDevice()
	for _, v6 := range []bool{false, true} {
		if c.used[v6] {
			c.plan.Devices = append(c.plan.Devices, c.device(v6))
		}
	}
	c.order()
	return c.plan
}

type compiler struct {
	in     Input
	plan   *Plan
	self   fabric.Node
	tunnel fabric.Tunnel
	used   map[bool]bool // outer families with a device
}

func (c *compiler) problem(format string, args ...any) {
	c.plan.Problems = append(c.plan.Problems, fmt.Sprintf(format, args...))
}

// home is the link that has the node's own address of a family.
func (c *compiler) home(v6 bool) (Link, bool) {
	own := c.self.Address(v6)
	if !own.IsValid() {
		return Link{}, false
	}
	for _, l := range c.in.Links {
		for _, p := range l.Prefixes {
			if p.Addr() == own {
				return l, true
			}
		}
	}
	return Link{}, false
}

func smaller(a, b int) int {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// outer is the family of the packets around a block's: the block's own if both nodes have it.
func outer(a, b fabric.Node, inner6 bool) (v6, ok bool) {
	for _, v6 := range []bool{inner6, !inner6} {
		if a.Address(v6).IsValid() && b.Address(v6).IsValid() {
			return v6, true
		}
	}
	return false, false
}

// own is one of this node's blocks: a route of last resort, since without one a packet to an address that no pod has
// would leave by the default route and perhaps come back, and the block's share of the pods' MTU.
func (c *compiler) own(b netip.Prefix) {
	pool, ok := c.in.Fabric.PoolOf(b)
	if !ok {
		return
	}
	for _, l := range c.in.Links {
		for _, p := range l.Prefixes {
			if b.Contains(p.Addr()) && l.Name != UDPName {
				c.plan.Taken = append(c.plan.Taken, p.Addr())
			}
		}
	}
	v6 := b.Addr().Is6()
	mode := pool.EffectiveMode()
	if mode != fabric.None { // of that no route is ours
		c.plan.Routes = append(c.plan.Routes, Route{Dst: b, Metric: MetricLastResort, Why: "own block of pool " + pool.Name})
	}
	if mode == fabric.VXLAN || mode == fabric.UDP {
		o, ok := outer(c.self, c.self, v6)
		if !ok {
			c.problem("block %s: this node has no address for a tunnel", b)
			return
		}
		v6 = o
		c.used[o] = c.used[o] || mode == fabric.VXLAN
	}
	if mode == fabric.UDP {
		c.udp().Addrs = append(c.udp().Addrs, b.Addr())
	}
	home, ok := c.home(v6)
	if !ok && mode != fabric.VXLAN && mode != fabric.UDP {
		home, ok = c.home(!v6) // IPv4 blocks over an IPv6 network
	}
	switch {
	case !ok && mode == fabric.None && pool.MTU > 0: // what is said is enough: no packet leaves by a way of ours
		home.MTU = pool.MTU
	case !ok:
		c.problem("block %s: this node's address is on no link now", b)
		return
	}
	mtu := smaller(home.MTU-c.added(mode, v6), pool.MTU)
	if b.Addr().Is6() && mtu < fabric.MinMTU {
		c.problem("block %s: %d bytes are left for a packet, IPv6 needs %d", b, mtu, fabric.MinMTU)
	}
	c.plan.PodMTU = smaller(c.plan.PodMTU, mtu)
}

// added is what a mode adds to a packet, in bytes.
func (c *compiler) added(mode fabric.Mode, v6 bool) int {
	switch {
	case mode == fabric.VXLAN:
		return overhead(v6)
	case mode == fabric.UDP && v6:
		return udpOverhead6
	case mode == fabric.UDP:
		return udpOverhead4
	}
	return 0
}

func overhead(v6 bool) int {
	if v6 {
		return overhead6
	}
	return overhead4
}

// peer is another node: a way for each of its blocks.
func (c *compiler) peer(n fabric.Node) {
	p := Peer{Node: n.Name, Blocks: n.PodCIDRs}
	tunnelled := false
	for _, b := range n.PodCIDRs {
		pool, ok := c.in.Fabric.PoolOf(b)
		way := "in no pool"
		if ok {
			way = string(pool.EffectiveMode())
			tunnelled = tunnelled || pool.EffectiveMode() == fabric.VXLAN
			switch pool.EffectiveMode() {
			case fabric.VXLAN:
				way = c.viaVXLAN(n, b, pool)
			case fabric.HostGW:
				way = c.direct(n, b, pool)
			case fabric.UDP:
				way = c.viaUDP(n, b, pool)
			}
		}
		p.Ways = append(p.Ways, way)
	}
	if tunnelled {
		c.plan.VTEPs = append(c.plan.VTEPs, n.Addresses...)
	}
	c.plan.Peers = append(c.plan.Peers, p)
}

func (c *compiler) viaVXLAN(n fabric.Node, b netip.Prefix, pool fabric.Pool) string {
	if pool.Direct {
		if _, _, _, err := c.neighbour(n, b); err == nil {
			return c.direct(n, b, pool)
		}
	}
	v6, ok := outer(c.self, n, b.Addr().Is6())
	if !ok {
		c.problem("block %s of node %s: the two nodes have no address family in common", b, n.Name)
		return "no address family in common"
	}
	c.used[v6] = true
	dev := c.name(v6)
	c.plan.Neighs = append(c.plan.Neighs, Neigh{Dev: dev, Addr: b.Addr(), MAC: n.MAC(v6)})
	if e := (Entry{Dev: dev, MAC: n.MAC(v6), Dst: n.Address(v6)}); !slices.Contains(last(c.plan.Entries, 4), e) {
		c.plan.Entries = append(c.plan.Entries, e)
	}
	r := Route{
		Dst: b, Hops: []Hop{{Dev: dev, Via: b.Addr(), OnLink: true}}, Metric: Metric,
		Why: fmt.Sprintf("node %s, pool %s, vxlan to %s", n.Name, pool.Name, n.Address(v6)),
	}
	if home, ok := c.home(v6); ok {
		r.MTU = less(smaller(pool.MTU, n.MTU-overhead(v6)), home.MTU-overhead(v6))
	}
	c.plan.Routes = append(c.plan.Routes, r)
	return "vxlan to " + n.Address(v6).String()
}

// less is mtu if it says less than the link's own.
func less(mtu, link int) int {
	if mtu > 0 && mtu < link {
		return mtu
	}
	return 0
}

func last(all []Entry, n int) []Entry { return all[max(0, len(all)-n):] }

// direct routes a block to the node's own address.
func (c *compiler) direct(n fabric.Node, b netip.Prefix, pool fabric.Pool) string {
	link, via, onlink, err := c.neighbour(n, b)
	if err != nil {
		c.problem("block %s of node %s: %v", b, n.Name, err)
		return err.Error()
	}
	r := Route{
		Dst: b, Hops: []Hop{{Dev: link.Name, Via: via, OnLink: onlink}}, Metric: Metric,
		MTU: less(smaller(pool.MTU, n.MTU), link.MTU),
		Why: fmt.Sprintf("node %s, pool %s, direct", n.Name, pool.Name),
	}
	if own := c.self.Address(b.Addr().Is6()); own.Is6() == via.Is6() {
		r.Source = own
	}
	c.plan.Routes = append(c.plan.Routes, r)
	return fmt.Sprintf("direct via %s dev %s", via, link.Name)
}

// neighbour says by which link, and with which address, a node is on the same network as this one.
func (c *compiler) neighbour(n fabric.Node, b netip.Prefix) (l Link, via netip.Addr, onlink bool, err error) {
	v6, ok := outer(c.self, n, b.Addr().Is6())
	if !ok || b.Addr().Is6() && !v6 {
		return l, via, false, fmt.Errorf("the two nodes have no address of its family in common")
	}
	via = n.Address(v6)
	home, ok := c.home(v6)
	if !ok {
		return l, via, false, fmt.Errorf("this node's address %s is on no link now", c.self.Address(v6))
	}
	if !home.Up {
		return l, via, false, fmt.Errorf("link %s is down", home.Name)
	}
	near := slices.ContainsFunc(home.Prefixes, func(p netip.Prefix) bool { return p.Contains(via) })
	switch {
	case n.Segment != "" && c.self.Segment != "" && n.Segment != c.self.Segment:
		return l, via, false, fmt.Errorf("segment %s is not this node's, %s", n.Segment, c.self.Segment)
	case !near && (n.Segment == "" || c.self.Segment == ""):
		return l, via, false, fmt.Errorf("%s is in no network of link %s", via, home.Name)
	}
	return home, via, !near, nil
}

// learned are the routes that BGP brought, for the blocks of pools that have that mode and for what lies outside of all
// blocks: the speaker's filters have decided already what may come in.
func (c *compiler) learned() {
	for _, l := range c.in.Learned {
		if slices.ContainsFunc(c.self.PodCIDRs, func(b netip.Prefix) bool { return fabric.Within(l.Prefix, b) }) {
			continue // never away from our own pods
		}
		if slices.ContainsFunc(c.in.Fabric.BGP.ServiceRanges, func(r netip.Prefix) bool { return fabric.Within(l.Prefix, r) }) {
			continue // the node's service proxy serves it
		}
		if pool, ok := c.in.Fabric.PoolOf(l.Prefix); ok && pool.EffectiveMode() != fabric.BGPMode {
			continue
		}
		r := Route{Dst: l.Prefix, Metric: Metric, Why: "bgp"}
		for _, nh := range l.NextHops {
			if link, ok := c.linkTo(nh); ok {
				r.Hops = append(r.Hops, Hop{Dev: link.Name, Via: nh.WithZone("")})
			}
		}
		if len(r.Hops) == 0 {
			c.problem("bgp route %s: no next hop of %v is in a network of this node", l.Prefix, l.NextHops)
			continue
		}
		if own := c.self.Address(l.Prefix.Addr().Is6()); own.Is6() == r.Hops[0].Via.Is6() {
			r.Source = own
		}
		c.plan.Routes = append(c.plan.Routes, r)
	}
}

// linkTo is the link whose network has the next hop, or which a link-local one names.
func (c *compiler) linkTo(nh netip.Addr) (Link, bool) {
	for _, l := range c.in.Links {
		if l.Up && (nh.Zone() == l.Name || slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool {
			return p.Contains(nh) && !p.Addr().IsLinkLocalUnicast()
		})) {
			return l, true
		}
	}
	return Link{}, false
}

func (c *compiler) name(v6 bool) string {
	if v6 {
		return c.in.Names.V6
	}
	return c.in.Names.V4
}

func (c *compiler) device(v6 bool) Device {
	d := Device{
		Name: c.name(v6), VNI: c.tunnel.VNI, Port: c.tunnel.Port, Local: c.self.Address(v6), MAC: c.self.MAC(v6),
		SoftChecksums: slices.Contains(c.in.SoftChecksums, c.name(v6)),
	}
	if home, ok := c.home(v6); ok {
		d.MTU = home.MTU - overhead(v6)
	}
	for _, b := range c.self.PodCIDRs {
		pool, ok := c.in.Fabric.PoolOf(b)
		o, _ := outer(c.self, c.self, b.Addr().Is6())
		if ok && pool.EffectiveMode() == fabric.VXLAN && o == v6 {
			d.Addrs = append(d.Addrs, b.Addr())
		}
	}
	return d
}

// order makes the plan independent of the order in which the fabric lists nodes, but for the peers.
func (c *compiler) order() {
	p := c.plan
	slices.SortFunc(p.Neighs, func(a, b Neigh) int { return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Dev, b.Dev)) })
	slices.SortFunc(p.Entries, func(a, b Entry) int {
		return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.Dev, b.Dev), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	p.Entries = slices.Compact(p.Entries)
	slices.SortStableFunc(p.Routes, func(a, b Route) int {
		return cmp.Or(a.Metric-b.Metric, fabric.ComparePrefix(a.Dst, b.Dst))
	})
	slices.SortFunc(p.VTEPs, netip.Addr.Compare)
	slices.SortFunc(p.Taken, netip.Addr.Compare)
	for i := range p.Devices {
		slices.SortFunc(p.Devices[i].Addrs, netip.Addr.Compare)
	}
}
