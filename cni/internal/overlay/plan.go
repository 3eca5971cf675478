// Package overlay decides what a node's kernel must hold so that its pods reach those of other nodes: VXLAN devices,
// their neighbour and forwarding entries, and routes. [Compile] is pure; package datapath carries its plan out.
package overlay

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/berth-project/berth/cni/internal/fabric"
)

// Metrics of our routes, so that they meet nobody else's: a route with a smaller one wins, as that of a bridge on
// which an earlier plugin's pods still are; the one of last resort loses against every pod's own.
const (
	Metric           = 184
	MetricLastResort = 65000
)

// Link is what the decision needs of one of the node's interfaces.
type Link struct {
	Index    int32
	Name     string
	MTU      int
	Up       bool
	Prefixes []netip.Prefix // addresses, each with its network's length
}

// Learned is a route that the BGP speaker has, with next hops that need not be resolved.
type Learned struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}

// Names are those of the VXLAN devices, by the family of their outer packets.
type Names struct{ V4, V6 string }

// DefaultNames are Berth's own; FlannelNames take over the devices that flannel made.
func DefaultNames() Names { return Names{V4: "berth.vx4", V6: "berth.vx6"} }

// FlannelNames are flannel's for a VNI.
func FlannelNames(vni uint32) Names {
	return Names{V4: fmt.Sprintf("flannel.%d", vni), V6: fmt.Sprintf("flannel-v6.%d", vni)}
}

// Input is all that the decision depends on.
type Input struct {
	Fabric  *fabric.Fabric
	Self    string
	Links   []Link
	Learned []Learned
	Names   Names
	// SoftChecksums are the devices whose checksums do not survive the way when hardware computes them.
	SoftChecksums []string
}

// Plan is what the kernel must hold, each list in a fixed order.
type Plan struct {
	Devices []Device
	Neighs  []Neigh
	Entries []Entry
	Routes  []Route
	// UDP is the agent's own tunnel; nil where no pool has that mode.
	UDP *UDP
	// VTEPs are the only sources from which the devices take packets.
	VTEPs []netip.Addr
	// PodMTU is that of pods' interfaces, the smallest of all ways out of this node; 0: not known.
	PodMTU int
	// Taken are addresses of this node's blocks that its links have, as the bridge of an earlier plugin: no pod may get
	// one.
	Taken []netip.Addr
	// Peers says for each other node how it is reached, in the order of the fabric.
	Peers []Peer
	// Problems are what of the fabric cannot be had on this node now, each with its reason.
	Problems []string
}

// Device is one VXLAN device. It is bound to no link, so that it outlives a change of the underlay; the kernel's routes
// decide where its packets leave.
type Device struct {
	Name  string
	VNI   uint32
	Port  uint16
	Local netip.Addr
	MAC   fabric.MAC
	// MTU is 0 while the node's own address is on no link: it then stays what it is.
	MTU int
	// Addrs are the first addresses of the node's blocks: the source of the node's own packets to pods elsewhere.
	Addrs []netip.Addr
	// SoftChecksums has the kernel compute checksums before a packet is wrapped.
	SoftChecksums bool
}

// UDPName is the link of mode udp.
const UDPName = "berth.udp"

// UDP is a TUN device whose packets the agent wraps itself.
type UDP struct {
	Port uint16
	// Local are the node's addresses that are sent from; MTU is that of the device, 0 for not known now.
	Local []netip.Addr
	MTU   int
	Addrs []netip.Addr
	Peers []UDPPeer
}

// UDPPeer is where packets for a block go, and the only place from which packets of that block are taken.
type UDPPeer struct {
	Block netip.Prefix
	Dst   netip.Addr
}

// Neigh binds a gateway, which is the first address of another node's block, to the MAC of its VTEP.
type Neigh struct {
	Dev  string
	Addr netip.Addr
	MAC  fabric.MAC
}

// Entry is a forwarding entry: where frames for that MAC are sent, by UDP.
type Entry struct {
	Dev string
	MAC fabric.MAC
	Dst netip.Addr
}

// Route is a route of ours. Without hops it is unreachable.
type Route struct {
	Dst    netip.Prefix
	Hops   []Hop
	Source netip.Addr
	// MTU is set where it is less than the link's.
	MTU    int
	Metric int
	// Why is for people: which node, which mode.
	Why string
}

// Hop is one way of a route.
type Hop struct {
	Dev    string
	Via    netip.Addr
	OnLink bool
}

// Peer is how one other node is reached.
type Peer struct {
	Node   string         `json:"node"`
	Blocks []netip.Prefix `json:"blocks"`
	// Ways are in the order of Blocks: "vxlan to 192.0.2.2", "direct via 192.0.2.2 dev eth0", "bgp", or why not.
	Ways []string `json:"ways"`
}

// String is the plan as the ip command would have it, a line each.
func (p *Plan) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, d := range p.Devices {
		line("link %s vxlan id %d local %s dstport %d address %s mtu %d", d.Name, d.VNI, d.Local, d.Port, d.MAC, d.MTU)
		if d.SoftChecksums {
			line("checksums of %s in software", d.Name)
		}
		for _, a := range d.Addrs {
			line("addr %s dev %s", netip.PrefixFrom(a, a.BitLen()), d.Name)
		}
	}
	if u := p.UDP; u != nil {
		line("tun %s port %d local %v mtu %d", UDPName, u.Port, u.Local, u.MTU)
		for _, a := range u.Addrs {
			line("addr %s dev %s", netip.PrefixFrom(a, a.BitLen()), UDPName)
		}
		for _, p := range u.Peers {
			line("wrap %s to %s", p.Block, p.Dst)
		}
	}
	for _, n := range p.Neighs {
		line("neigh %s lladdr %s dev %s", n.Addr, n.MAC, n.Dev)
	}
	for _, e := range p.Entries {
		line("fdb %s dst %s dev %s", e.MAC, e.Dst, e.Dev)
	}
	for _, r := range p.Routes {
		line("%s", r)
	}
	for _, v := range p.VTEPs {
		line("vtep %s", v)
	}
	for _, a := range p.Taken {
		line("taken %s", a)
	}
	if p.PodMTU > 0 {
		line("pods mtu %d", p.PodMTU)
	}
	for _, s := range p.Problems {
		line("problem %s", s)
	}
	return b.String()
}

// String is the route as the ip command has it.
func (r Route) String() string {
	s := "route " + r.Dst.String()
	if len(r.Hops) == 0 {
		s = "route unreachable " + r.Dst.String()
	}
	for _, h := range r.Hops {
		if len(r.Hops) > 1 {
			s += " nexthop"
		}
		if h.Via.IsValid() {
			s += " via " + h.Via.String()
		}
		s += " dev " + h.Dev
		if h.OnLink {
			s += " onlink"
		}
	}
	if r.Source.IsValid() {
		s += " src " + r.Source.String()
	}
	s += fmt.Sprintf(" metric %d", r.Metric)
	if r.MTU > 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return s
}
