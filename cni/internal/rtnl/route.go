package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Protocol marks the routes that this plugin made (rtm_protocol; 128–255 are free for daemons).
const Protocol = 183

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addrMessage has the broadcast address that IPv4 networks of more than two addresses have.
func addrMessage(typ, flags uint16, index int32, p netip.Prefix, ifaFlags byte) []byte {
	a := p.Addr()
	fixed := []byte{family(a), byte(p.Bits()), ifaFlags, unix.RT_SCOPE_UNIVERSE}
	fixed = binary.NativeEndian.AppendUint32(fixed, uint32(index))
	m := nlwire.New(typ, flags, fixed).Bytes(unix.IFA_LOCAL, a.AsSlice()).Bytes(unix.IFA_ADDRESS, a.AsSlice())
	if a.Is4() && p.Bits() < 31 {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|^uint32(0)>>p.Bits())
		m.Bytes(unix.IFA_BROADCAST, b[:])
	}
	return m.Done()
}

// AddAddr gives a link an address without duplicate address detection, so that it is usable at once. An address that
// is there already is an error: it is somebody else's.
func AddAddr(index int32, p netip.Prefix) nlwire.Op { return addAddr(index, p, unix.IFA_F_NODAD) }

// AddAddrDAD gives a link an address that the kernel looks for on the network first.
func AddAddrDAD(index int32, p netip.Prefix) nlwire.Op { return addAddr(index, p, 0) }

func addAddr(index int32, p netip.Prefix, flags byte) nlwire.Op {
	return nlwire.Op{What: fmt.Sprintf("add address %s", p), Msg: addrMessage(unix.RTM_NEWADDR, ackCreate, index, p, flags)}
}

// DelAddr takes an address off a link.
func DelAddr(index int32, p netip.Prefix) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("delete address %s", p), Msg: addrMessage(unix.RTM_DELADDR, ack, index, p, 0),
		Tolerate: []unix.Errno{unix.EADDRNOTAVAIL, unix.ENODEV},
	}
}

// AddNeigh binds an address to a MAC for ever, so that neither ARP nor neighbour discovery is needed or heard.
func AddNeigh(index int32, a netip.Addr, mac MAC) nlwire.Op {
	fixed := []byte{family(a), 0, 0, 0}
	fixed = binary.NativeEndian.AppendUint32(fixed, uint32(index))
	fixed = binary.NativeEndian.AppendUint16(fixed, ntfPermanentStates)
	fixed = append(fixed, 0, 0)
	m := nlwire.New(unix.RTM_NEWNEIGH, ack|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fixed).
		Bytes(unix.NDA_DST, a.AsSlice()).Bytes(unix.NDA_LLADDR, mac[:])
	return nlwire.Op{What: fmt.Sprintf("bind %s to %s", a, mac), Msg: m.Done()}
}

// Route is a unicast route, of the main table if Table is 0. A zero Gateway means that the destination is on the link;
// OnLink lets an IPv4 gateway be in no subnet of the link. MTU, AdvMSS and Priority are the kernel's own if 0.
type Route struct {
	Dst      netip.Prefix
	Gateway  netip.Addr
	Source   netip.Addr
	Index    int32
	Protocol byte
	OnLink   bool

	MTU, AdvMSS, Priority, Table int
	// Scope is RT_SCOPE_*; nil for what the gateway implies.
	Scope *int
}

func routeMsg(typ, flags uint16, r Route) []byte {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if !r.Gateway.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	if r.Scope != nil {
		scope = byte(*r.Scope)
	}
	var rtflags uint32
	if r.OnLink {
		rtflags = rtnhOnLink
	}
	if typ == unix.RTM_DELROUTE {
		scope = unix.RT_SCOPE_NOWHERE
	}
	table := byte(unix.RT_TABLE_MAIN)
	if r.Table != 0 {
		table = unix.RT_TABLE_UNSPEC
	}
	fixed := []byte{family(r.Dst.Addr()), byte(r.Dst.Bits()), 0, 0, table, r.Protocol, scope, unix.RTN_UNICAST}
	fixed = binary.NativeEndian.AppendUint32(fixed, rtflags)
	m := nlwire.New(typ, flags, fixed).U32(unix.RTA_OIF, uint32(r.Index))
	if r.Dst.Bits() > 0 {
		m.Bytes(unix.RTA_DST, r.Dst.Addr().AsSlice())
	}
	if r.Gateway.IsValid() {
		m.Bytes(unix.RTA_GATEWAY, r.Gateway.AsSlice())
	}
	if r.Source.IsValid() {
		m.Bytes(unix.RTA_PREFSRC, r.Source.AsSlice())
	}
	if r.Table != 0 {
		m.U32(unix.RTA_TABLE, uint32(r.Table))
	}
	if r.Priority != 0 {
		m.U32(unix.RTA_PRIORITY, uint32(r.Priority))
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		m.Nest(unix.RTA_METRICS, func(m *nlwire.Builder) {
			if r.MTU != 0 {
				m.U32(unix.RTAX_MTU, uint32(r.MTU))
			}
			if r.AdvMSS != 0 {
				m.U32(unix.RTAX_ADVMSS, uint32(r.AdvMSS))
			}
		})
	}
	return m.Done()
}

// AddRoute adds a route; one that exists for the same destination is an error, since it leads elsewhere.
func AddRoute(r Route) nlwire.Op {
	return nlwire.Op{What: fmt.Sprintf("add route %s", r.Dst), Msg: routeMsg(unix.RTM_NEWROUTE, ackCreate, r)}
}

// DelRoute deletes a route of ours.
func DelRoute(r Route) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("delete route %s", r.Dst), Msg: routeMsg(unix.RTM_DELROUTE, ack, r),
		Tolerate: []unix.Errno{unix.ESRCH, unix.ENODEV, unix.ENOENT},
	}
}

// LookupRoute asks the kernel which way a packet to dst would go; nothing is sent to it.
func LookupRoute(dst netip.Addr) []byte {
	fixed := []byte{family(dst), byte(dst.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	return nlwire.New(unix.RTM_GETROUTE, request, fixed).Bytes(unix.RTA_DST, dst.AsSlice()).Done()
}

// DumpRoutes asks for the main table's routes of one family with the given protocol.
func DumpRoutes(ipv6 bool, protocol byte) []byte {
	fam := byte(unix.AF_INET)
	if ipv6 {
		fam = unix.AF_INET6
	}
	fixed := []byte{fam, 0, 0, 0, unix.RT_TABLE_MAIN, protocol, 0, 0, 0, 0, 0, 0}
	return nlwire.New(unix.RTM_GETROUTE, request|unix.NLM_F_DUMP, fixed).Done()
}

// DumpAllRoutes asks for the routes of one family in all tables.
func DumpAllRoutes(ipv6 bool) []byte {
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0] = unix.AF_INET
	if ipv6 {
		fixed[0] = unix.AF_INET6
	}
	return nlwire.New(unix.RTM_GETROUTE, request|unix.NLM_F_DUMP, fixed).Done()
}

// ParseRoute reads an RTM_NEWROUTE message.
func ParseRoute(m nlwire.Message) (r Route, ok bool) {
	if m.Type != unix.RTM_NEWROUTE || len(m.Body) < unix.SizeofRtMsg {
		return r, false
	}
	bits := int(m.Body[1])
	r.Protocol = m.Body[5]
	dst := netip.IPv4Unspecified()
	if m.Body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	nlwire.Attrs(m.Body[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.Index = int32(nlwire.U32(v))
		case unix.RTA_TABLE:
			r.Table = int(nlwire.U32(v))
		case unix.RTA_PRIORITY:
			r.Priority = int(nlwire.U32(v))
		}
	})
	r.Dst = netip.PrefixFrom(dst, bits)
	return r, dst.IsValid()
}

// DumpAddrs asks for all addresses of all links.
func DumpAddrs() []byte {
	return nlwire.New(unix.RTM_GETADDR, request|unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg)).Done()
}

// ParseAddr reads an RTM_NEWADDR message.
func ParseAddr(m nlwire.Message) (index int32, a netip.Addr, ok bool) {
	index, p, ok := ParsePrefix(m)
	return index, p.Addr(), ok
}

// ParsePrefix reads an RTM_NEWADDR message with the address's prefix length.
func ParsePrefix(m nlwire.Message) (index int32, p netip.Prefix, ok bool) {
	if m.Type != unix.RTM_NEWADDR || len(m.Body) < unix.SizeofIfAddrmsg {
		return 0, p, false
	}
	var a netip.Addr
	index = int32(nlwire.U32(m.Body[4:]))
	nlwire.Attrs(m.Body[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) {
		if typ == unix.IFA_LOCAL || typ == unix.IFA_ADDRESS && !a.IsValid() {
			a, _ = netip.AddrFromSlice(v)
		}
	})
	return index, netip.PrefixFrom(a, int(m.Body[1])), a.IsValid()
}
