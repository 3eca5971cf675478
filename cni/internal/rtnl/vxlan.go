package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Attributes of VXLAN devices (linux/if_link.h) and values of forwarding entries (linux/neighbour.h).
const (
	vxlanID         = 1
	vxlanLocal      = 4
	vxlanLearning   = 7
	vxlanPort       = 15
	vxlanLocal6     = 17
	vxlanUDPCsum    = 18
	ntfSelf         = 2
	looseRPFilter   = 2
	infoKind        = unix.IFLA_INFO_KIND
	infoData        = unix.IFLA_INFO_DATA
	statesPermanent = unix.NUD_PERMANENT | unix.NUD_NOARP
	ndmsgLen        = unix.SizeofNdMsg
)

// VXLAN is a VXLAN device as it is made and as the kernel lists it. It learns nothing and is bound to no link.
type VXLAN struct {
	Name  string
	VNI   uint32
	Port  uint16
	Local netip.Addr
	MAC   MAC
	// MTU of 0 leaves the kernel's.
	MTU int
	// Learning is only read.
	Learning bool
}

func (v VXLAN) data(m *nlwire.Builder) {
	m.U32(vxlanID, v.VNI)
	if v.Local.Is4() {
		m.Bytes(vxlanLocal, v.Local.AsSlice())
	} else {
		m.Bytes(vxlanLocal6, v.Local.AsSlice())
	}
}

// AddVXLAN makes the device, down, so that it can be told to have no automatic address before it comes up. Outer IPv4 packets have no UDP checksum (RFC 7348 §5), IPv6 ones do.
func AddVXLAN(v VXLAN) nlwire.Op {
	m := nlwire.New(unix.RTM_NEWLINK, ackCreate, ifinfo(0, 0, 0)).
		Str(unix.IFLA_IFNAME, v.Name).Bytes(unix.IFLA_ADDRESS, v.MAC[:])
	if v.MTU > 0 {
		m.U32(unix.IFLA_MTU, uint32(v.MTU))
	}
	m.Nest(unix.IFLA_LINKINFO, func(m *nlwire.Builder) {
		m.Bytes(infoKind, []byte("vxlan"))
		m.Nest(infoData, func(m *nlwire.Builder) {
			v.data(m)
			m.U8(vxlanLearning, 0).U16BE(vxlanPort, v.Port)
			if v.Local.Is4() {
				m.U8(vxlanUDPCsum, 0)
			}
		})
	})
	return nlwire.Op{What: "create vxlan " + v.Name, Msg: m.Done()}
}

// SetVXLANLocal changes the address from which a device sends, and stops it from learning.
func SetVXLANLocal(index int32, v VXLAN) nlwire.Op {
	m := nlwire.New(unix.RTM_NEWLINK, ack, ifinfo(index, 0, 0))
	m.Nest(unix.IFLA_LINKINFO, func(m *nlwire.Builder) {
		m.Bytes(infoKind, []byte("vxlan"))
		m.Nest(infoData, func(m *nlwire.Builder) {
			v.data(m)
			m.U8(vxlanLearning, 0)
		})
	})
	return nlwire.Op{What: fmt.Sprintf("let %s send from %s", v.Name, v.Local), Msg: m.Done()}
}

// ConfigureTunnel sets what only a second request can: the alias, forwarding, the reverse path filter no stricter than
// loose (a reply may come by the other of two ways), and no automatic IPv6 address.
func ConfigureTunnel(index int32, alias string, ipv6 bool) nlwire.Op {
	m := nlwire.New(unix.RTM_SETLINK, ack, ifinfo(index, 0, 0))
	m.Bytes(unix.IFLA_IFALIAS, []byte(alias))
	m.Nest(unix.IFLA_AF_SPEC, func(m *nlwire.Builder) {
		m.Nest(unix.AF_INET, func(m *nlwire.Builder) {
			m.Nest(inetConf, func(m *nlwire.Builder) {
				m.U32(devconfForwarding, 1).U32(devconfRedirects, 0).U32(devconfSendRedir, 0).U32(devconfRPFilter, looseRPFilter)
			})
		})
		if ipv6 {
			m.Nest(unix.AF_INET6, func(m *nlwire.Builder) { m.U8(inet6AddrGenMode, addrGenModeNone) })
		}
	})
	return nlwire.Op{What: fmt.Sprintf("configure tunnel %d", index), Msg: m.Done()}
}

// ParseVXLAN reads an RTM_NEWLINK message; ok is false for a link of another kind.
func ParseVXLAN(m nlwire.Message) (v VXLAN, ok bool) {
	l, isLink := ParseLink(m)
	if !isLink || l.Kind != "vxlan" {
		return v, false
	}
	v = VXLAN{Name: l.Name, MAC: l.MAC, MTU: l.MTU}
	nlwire.Attrs(m.Body[unix.SizeofIfInfomsg:], func(typ uint16, b []byte) {
		if typ != unix.IFLA_LINKINFO {
			return
		}
		nlwire.Attrs(b, func(typ uint16, b []byte) {
			if typ == infoData {
				nlwire.Attrs(b, v.attribute)
			}
		})
	})
	return v, true
}

func (v *VXLAN) attribute(typ uint16, b []byte) {
	switch typ {
	case vxlanID:
		v.VNI = nlwire.U32(b)
	case vxlanLocal, vxlanLocal6:
		v.Local, _ = netip.AddrFromSlice(b)
	case vxlanLearning:
		v.Learning = len(b) == 1 && b[0] != 0
	case vxlanPort:
		if len(b) == 2 {
			v.Port = binary.BigEndian.Uint16(b)
		}
	}
}

// Forward is a forwarding entry of a VXLAN device: frames for MAC go to Dst.
type Forward struct {
	Index int32
	MAC   MAC
	Dst   netip.Addr
}

func forwardMsg(typ, flags uint16, f Forward) []byte {
	fixed := ndmsg(unix.AF_BRIDGE, f.Index, statesPermanent, ntfSelf)
	return nlwire.New(typ, flags, fixed).Bytes(unix.NDA_LLADDR, f.MAC[:]).Bytes(unix.NDA_DST, f.Dst.AsSlice()).Done()
}

func ndmsg(family byte, index int32, state uint16, flags byte) []byte {
	b := binary.NativeEndian.AppendUint32([]byte{family, 0, 0, 0}, uint32(index))
	b = binary.NativeEndian.AppendUint16(b, state)
	return append(b, flags, 0)
}

// SetForward makes frames for a MAC go to one address, whatever it was before.
func SetForward(f Forward) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("send frames for %s to %s", f.MAC, f.Dst),
		Msg:  forwardMsg(unix.RTM_NEWNEIGH, ack|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, f),
	}
}

// DelForward deletes a forwarding entry.
func DelForward(f Forward) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("no longer send frames for %s to %s", f.MAC, f.Dst), Msg: forwardMsg(unix.RTM_DELNEIGH, ack, f),
		Tolerate: []unix.Errno{unix.ENOENT, unix.ENODEV, unix.ESRCH},
	}
}

// DumpForwards asks for the forwarding entries of a link.
func DumpForwards(index int32) []byte {
	return nlwire.New(unix.RTM_GETNEIGH, request|unix.NLM_F_DUMP, ndmsg(unix.AF_BRIDGE, index, 0, 0)).Done()
}

// ParseForward reads an RTM_NEWNEIGH message of the bridge family.
func ParseForward(m nlwire.Message) (f Forward, ok bool) {
	if m.Type != unix.RTM_NEWNEIGH || len(m.Body) < ndmsgLen || m.Body[0] != unix.AF_BRIDGE {
		return f, false
	}
	f.Index = int32(nlwire.U32(m.Body[4:]))
	nlwire.Attrs(m.Body[ndmsgLen:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			copy(f.MAC[:], v)
		case unix.NDA_DST:
			f.Dst, _ = netip.AddrFromSlice(v)
		}
	})
	return f, f.Dst.IsValid()
}

// Neigh is a neighbour entry.
type Neigh struct {
	Index     int32
	Addr      netip.Addr
	MAC       MAC
	Permanent bool
}

// DelNeigh deletes a neighbour entry.
func DelNeigh(index int32, a netip.Addr) nlwire.Op {
	m := nlwire.New(unix.RTM_DELNEIGH, ack, ndmsg(family(a), index, 0, 0)).Bytes(unix.NDA_DST, a.AsSlice())
	return nlwire.Op{
		What: fmt.Sprintf("unbind %s", a), Msg: m.Done(), Tolerate: []unix.Errno{unix.ENOENT, unix.ENODEV, unix.ESRCH},
	}
}

// DumpNeighs asks for the neighbour entries of a link, both families.
func DumpNeighs(index int32) []byte {
	return nlwire.New(unix.RTM_GETNEIGH, request|unix.NLM_F_DUMP, ndmsg(unix.AF_UNSPEC, 0, 0, 0)).
		U32(unix.NDA_IFINDEX, uint32(index)).Done()
}

// ParseNeigh reads an RTM_NEWNEIGH message of an IP family.
func ParseNeigh(m nlwire.Message) (n Neigh, ok bool) {
	if m.Type != unix.RTM_NEWNEIGH && m.Type != unix.RTM_DELNEIGH || len(m.Body) < ndmsgLen || m.Body[0] == unix.AF_BRIDGE {
		return n, false
	}
	n.Index = int32(nlwire.U32(m.Body[4:]))
	n.Permanent = binary.NativeEndian.Uint16(m.Body[8:])&unix.NUD_PERMANENT != 0
	nlwire.Attrs(m.Body[ndmsgLen:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			copy(n.MAC[:], v)
		case unix.NDA_DST:
			n.Addr, _ = netip.AddrFromSlice(v)
		}
	})
	return n, n.Addr.IsValid()
}
