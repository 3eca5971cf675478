// Package datapath makes the kernel hold what a plan of package overlay says: it reads what is there, compares, and
// sends the difference in batches. It owns what carries our mark, and nothing else:
//
//   - VXLAN devices with our alias, and everything on them;
//   - routes of protocol 184 in the main table;
//   - the nftables table berth-netd.
//
// It also watches the kernel for what others change of that.
package datapath

import (
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"golang.org/x/sys/unix"
)

// Protocol marks the agent's routes (rtm_protocol; the plugin's have 183). Alias marks its links.
const (
	Protocol = 184
	Alias    = "berth-netd"
)

// tunnel is a VXLAN device as it is.
type tunnel struct {
	index int32
	alias string
	up    bool
	rtnl.VXLAN
	addrs    map[netip.Prefix]bool
	neighs   map[netip.Addr]rtnl.MAC
	forwards map[rtnl.MAC]netip.Addr
	// stray are learned or temporary neighbours, which nobody should have on a device without learning.
	stray map[netip.Addr]bool
}

// routeKey is what the kernel tells routes of a table apart by.
type routeKey struct {
	dst    netip.Prefix
	metric int
}

// state is what of ours the kernel holds, and the node's links.
type state struct {
	links   []overlay.Link
	tunnels map[string]*tunnel // all VXLAN devices, also others'
	routes  map[routeKey]rtnl.Paths
	// foreign are others' routes over our devices.
	foreign []rtnl.Paths
}

// read asks the kernel for everything: some dumps, each a message per hundred objects.
func read(c *nlwire.Conn) (*state, error) {
	s, err := readLinks(c)
	if err != nil {
		return nil, err
	}
	for _, t := range s.tunnels {
		if err := t.read(c); err != nil {
			return nil, err
		}
	}
	ours := map[int32]bool{}
	for _, t := range s.tunnels {
		if t.alias == Alias {
			ours[t.index] = true
		}
	}
	for _, v6 := range []bool{false, true} {
		ms, err := c.Query("list routes", rtnl.DumpMain(v6))
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			p, ok := rtnl.ParsePaths(m)
			switch {
			case !ok:
			case p.Protocol == Protocol:
				s.routes[routeKey{p.Dst, p.Metric}] = p
			case p.Protocol != unix.RTPROT_KERNEL && len(p.Hops) == 1 && ours[p.Hops[0].Index]:
				s.foreign = append(s.foreign, p)
			}
		}
	}
	return s, nil
}

// readLinks lists links and addresses.
func readLinks(c *nlwire.Conn) (*state, error) {
	s := &state{tunnels: map[string]*tunnel{}, routes: map[routeKey]rtnl.Paths{}}
	ms, err := c.Query("list links", rtnl.DumpLinks())
	if err != nil {
		return nil, err
	}
	at, byIndex := map[int32]int{}, map[int32]*tunnel{}
	for _, m := range ms {
		l, ok := rtnl.ParseLink(m)
		if !ok {
			continue
		}
		if v, ok := rtnl.ParseVXLAN(m); ok {
			t := &tunnel{
				index: l.Index, alias: l.Alias, up: l.Up, VXLAN: v, addrs: map[netip.Prefix]bool{},
				neighs: map[netip.Addr]rtnl.MAC{}, forwards: map[rtnl.MAC]netip.Addr{}, stray: map[netip.Addr]bool{},
			}
			s.tunnels[l.Name], byIndex[l.Index] = t, t
			continue
		}
		at[l.Index] = len(s.links)
		s.links = append(s.links, overlay.Link{Index: l.Index, Name: l.Name, MTU: l.MTU, Up: l.Up})
	}
	if ms, err = c.Query("list addresses", rtnl.DumpAddrs()); err != nil {
		return nil, err
	}
	for _, m := range ms {
		index, p, ok := rtnl.ParsePrefix(m)
		if !ok {
			continue
		}
		if t := byIndex[index]; t != nil {
			t.addrs[p] = true
		} else if i, ok := at[index]; ok {
			s.links[i].Prefixes = append(s.links[i].Prefixes, p)
		}
	}
	return s, nil
}

// read lists a tunnel's neighbours and forwarding entries.
func (t *tunnel) read(c *nlwire.Conn) error {
	ms, err := c.Query("list neighbours of "+t.Name, rtnl.DumpNeighs(t.index))
	if err != nil {
		return err
	}
	for _, m := range ms {
		n, ok := rtnl.ParseNeigh(m)
		switch {
		case !ok || n.Index != t.index || n.Addr.IsMulticast():
		case n.Permanent:
			t.neighs[n.Addr] = n.MAC
		default:
			t.stray[n.Addr] = true
		}
	}
	if ms, err = c.Query("list forwarding entries of "+t.Name, rtnl.DumpForwards(t.index)); err != nil {
		return err
	}
	for _, m := range ms {
		if f, ok := rtnl.ParseForward(m); ok && f.Index == t.index {
			t.forwards[f.MAC] = f.Dst
		}
	}
	return nil
}

// indexes are the links that a route may name.
func (s *state) indexes() map[string]int32 {
	all := map[string]int32{}
	for _, l := range s.links {
		all[l.Name] = l.Index
	}
	for name, t := range s.tunnels {
		all[name] = t.index
	}
	return all
}

// paths turns a planned route into the kernel's terms.
func paths(r overlay.Route, indexes map[string]int32) (rtnl.Paths, error) {
	p := rtnl.Paths{Dst: r.Dst, Source: r.Source, Protocol: Protocol, Metric: r.Metric, MTU: r.MTU}
	for _, h := range r.Hops {
		index, ok := indexes[h.Dev]
		if !ok {
			return p, fmt.Errorf("route %s: link %s does not exist", r.Dst, h.Dev)
		}
		p.Hops = append(p.Hops, rtnl.Hop{Index: index, Via: h.Via, OnLink: h.OnLink})
	}
	return p, nil
}
