package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// rtaVia is a gateway of another family than the destination's (linux/rtnetlink.h, Linux 5.2).
const rtaVia = 18

// Hop is one next hop of a [Paths] route.
type Hop struct {
	Index  int32
	Via    netip.Addr
	OnLink bool
}

// Paths is a route of the main table with any number of next hops; with none it is unreachable. Gateways of IPv4 routes
// may be IPv6 addresses (RFC 8950).
type Paths struct {
	Dst      netip.Prefix
	Hops     []Hop
	Source   netip.Addr
	Protocol byte
	// Metric is the route's priority, and with Dst its key; MTU of 0 is the link's.
	Metric, MTU int
}

// Equal says whether the kernel would treat packets the same. OnLink is how a route was let in, not what it does.
func (p Paths) Equal(o Paths) bool {
	return p.Dst == o.Dst && p.Source == o.Source && p.Metric == o.Metric && p.MTU == o.MTU && p.Protocol == o.Protocol &&
		slices.EqualFunc(p.Hops, o.Hops, func(a, b Hop) bool { return a.Index == b.Index && a.Via == b.Via })
}

func (p Paths) header(typ, flags uint16) *nlwire.Builder {
	kind, scope := byte(unix.RTN_UNICAST), byte(unix.RT_SCOPE_UNIVERSE)
	if len(p.Hops) == 0 {
		kind = unix.RTN_UNREACHABLE
	} else if !p.Hops[0].Via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	if typ == unix.RTM_DELROUTE {
		kind, scope = unix.RTN_UNSPEC, unix.RT_SCOPE_NOWHERE
	}
	var rtflags uint32
	if len(p.Hops) == 1 && p.Hops[0].OnLink && typ != unix.RTM_DELROUTE {
		rtflags = rtnhOnLink
	}
	fixed := []byte{family(p.Dst.Addr()), byte(p.Dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, p.Protocol, scope, kind}
	m := nlwire.New(typ, flags, binary.NativeEndian.AppendUint32(fixed, rtflags))
	if p.Dst.Bits() > 0 {
		m.Bytes(unix.RTA_DST, p.Dst.Addr().AsSlice())
	}
	return m.U32(unix.RTA_PRIORITY, uint32(p.Metric))
}

func (p Paths) gateway(m *nlwire.Builder, h Hop) {
	if !h.Via.IsValid() {
		return // on the link
	}
	if h.Via.Is4() == p.Dst.Addr().Is4() {
		m.Bytes(unix.RTA_GATEWAY, h.Via.AsSlice())
		return
	}
	m.Bytes(rtaVia, append(binary.NativeEndian.AppendUint16(nil, uint16(family(h.Via))), h.Via.AsSlice()...))
}

// SetPaths makes the route what p says, in one step if there is one with the same destination and metric.
func SetPaths(p Paths) nlwire.Op {
	m := p.header(unix.RTM_NEWROUTE, ack|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	switch len(p.Hops) {
	case 0:
	case 1:
		m.U32(unix.RTA_OIF, uint32(p.Hops[0].Index))
		p.gateway(m, p.Hops[0])
	default:
		m.Nest(unix.RTA_MULTIPATH, func(m *nlwire.Builder) {
			for _, h := range p.Hops {
				m.Raw(p.nexthop(h))
			}
		})
	}
	if p.Source.IsValid() {
		m.Bytes(unix.RTA_PREFSRC, p.Source.AsSlice())
	}
	if p.MTU > 0 {
		m.Nest(unix.RTA_METRICS, func(m *nlwire.Builder) { m.U32(unix.RTAX_MTU, uint32(p.MTU)) })
	}
	return nlwire.Op{What: fmt.Sprintf("set route %s metric %d", p.Dst, p.Metric), Msg: m.Done()}
}

// nexthop is a struct rtnexthop with its attributes.
func (p Paths) nexthop(h Hop) []byte {
	const rtnexthopLen, header = 8, 16
	inner := nlwire.New(0, 0, nil)
	p.gateway(inner, h)
	attrs := inner.Done()[header:]
	b := binary.NativeEndian.AppendUint16(nil, uint16(rtnexthopLen+len(attrs)))
	flags := byte(0)
	if h.OnLink {
		flags = rtnhOnLink
	}
	b = binary.NativeEndian.AppendUint32(append(b, flags, 0), uint32(h.Index))
	return append(b, attrs...)
}

// DelPaths deletes the route with p's destination, metric and protocol, however it leads.
func DelPaths(p Paths) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("delete route %s metric %d", p.Dst, p.Metric), Msg: p.header(unix.RTM_DELROUTE, ack).Done(),
		Tolerate: []unix.Errno{unix.ESRCH, unix.ENODEV, unix.ENOENT},
	}
}

// ParsePaths reads an RTM_NEWROUTE or RTM_DELROUTE message of the main table.
func ParsePaths(m nlwire.Message) (p Paths, ok bool) {
	if m.Type != unix.RTM_NEWROUTE && m.Type != unix.RTM_DELROUTE || len(m.Body) < unix.SizeofRtMsg {
		return p, false
	}
	table := uint32(m.Body[4])
	p.Protocol = m.Body[5]
	dst := netip.IPv4Unspecified()
	if m.Body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	var one Hop
	nlwire.Attrs(m.Body[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_TABLE:
			table = nlwire.U32(v)
		case unix.RTA_PRIORITY:
			p.Metric = int(nlwire.U32(v))
		case unix.RTA_PREFSRC:
			p.Source, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			one.Index = int32(nlwire.U32(v))
		case unix.RTA_GATEWAY, rtaVia:
			one.Via = via(typ, v)
		case unix.RTA_MULTIPATH:
			p.Hops = nexthops(v)
		case unix.RTA_METRICS:
			nlwire.Attrs(v, func(typ uint16, v []byte) {
				if typ == unix.RTAX_MTU {
					p.MTU = int(nlwire.U32(v))
				}
			})
		}
	})
	if kind := m.Body[7]; kind == unix.RTN_UNICAST && p.Hops == nil {
		p.Hops = []Hop{one}
	}
	p.Dst = netip.PrefixFrom(dst, int(m.Body[1]))
	return p, dst.IsValid() && table == unix.RT_TABLE_MAIN
}

func via(typ uint16, v []byte) netip.Addr {
	if typ == rtaVia && len(v) > 2 {
		v = v[2:]
	}
	a, _ := netip.AddrFromSlice(v)
	return a
}

func nexthops(b []byte) (all []Hop) {
	const rtnexthopLen = 8
	for len(b) >= rtnexthopLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < rtnexthopLen || n > len(b) {
			return all
		}
		h := Hop{Index: int32(nlwire.U32(b[4:]))}
		nlwire.Attrs(b[rtnexthopLen:n], func(typ uint16, v []byte) {
			if typ == unix.RTA_GATEWAY || typ == rtaVia {
				h.Via = via(typ, v)
			}
		})
		all = append(all, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return all
}

// DumpMain asks for the main table's routes of one family, whoever made them.
func DumpMain(ipv6 bool) []byte {
	fam := byte(unix.AF_INET)
	if ipv6 {
		fam = unix.AF_INET6
	}
	fixed := []byte{fam, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0}
	return nlwire.New(unix.RTM_GETROUTE, request|unix.NLM_F_DUMP, fixed).Done()
}

// MatchRoute asks for the route itself, with its destination as it stands in the table, that a packet to dst would take
// (RTM_F_FIB_MATCH, Linux 4.13; IPv6 5.1).
func MatchRoute(dst netip.Addr) []byte {
	const fibMatch = 0x2000
	fixed := []byte{family(dst), byte(dst.BitLen()), 0, 0, 0, 0, 0, 0}
	fixed = binary.NativeEndian.AppendUint32(fixed, fibMatch)
	return nlwire.New(unix.RTM_GETROUTE, request, fixed).Bytes(unix.RTA_DST, dst.AsSlice()).Done()
}
