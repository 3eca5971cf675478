package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// udp is the plan's tunnel of that mode, made when it is first needed.
func (c *compiler) udp() *UDP {
	if c.plan.UDP == nil {
		c.plan.UDP = &UDP{Port: c.tunnel.UDPPort, Local: c.self.Addresses}
	}
	return c.plan.UDP
}

// viaUDP leads a block to the agent's own device. The kernel knows no gateway there: the agent looks at destinations.
func (c *compiler) viaUDP(n fabric.Node, b netip.Prefix, pool fabric.Pool) string {
	v6, ok := outer(c.self, n, b.Addr().Is6())
	if !ok {
		c.problem("block %s of node %s: the two nodes have no address family in common", b, n.Name)
		return "no address family in common"
	}
	u := c.udp()
	u.Peers = append(u.Peers, UDPPeer{Block: b, Dst: n.Address(v6)})
	r := Route{
		Dst: b, Hops: []Hop{{Dev: UDPName}}, Metric: Metric,
		Why: fmt.Sprintf("node %s, pool %s, udp to %s", n.Name, pool.Name, n.Address(v6)),
	}
	if home, ok := c.home(v6); ok {
		r.MTU = less(smaller(pool.MTU, n.MTU-c.added(fabric.UDP, v6)), home.MTU-c.added(fabric.UDP, v6))
	}
	c.plan.Routes = append(c.plan.Routes, r)
	return "udp to " + n.Address(v6).String()
}

// udpDevice ends the tunnel's description: its MTU is that of the narrowest of its ways.
func (c *compiler) udpDevice() {
	u := c.plan.UDP
	if u == nil {
		return
	}
	for _, a := range u.Local {
		if home, ok := c.home(a.Is6()); ok {
			u.MTU = smaller(u.MTU, home.MTU-c.added(fabric.UDP, a.Is6()))
		}
	}
	slices.SortFunc(u.Peers, func(a, b UDPPeer) int { return fabric.ComparePrefix(a.Block, b.Block) })
	slices.SortFunc(u.Addrs, netip.Addr.Compare)
}
