// Package rtnl compiles the rtnetlink requests of a routed veth: links, addresses, routes and neighbours. Every
// function is pure and returns one request; a connection of nlwire sends many of them at once. It owns no state
// and decides nothing. See rtnetlink(7) and linux/if_link.h.
package rtnl

import (
	"encoding/binary"
	"fmt"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Attributes that golang.org/x/sys lacks (linux/veth.h, linux/if_link.h).
const (
	vethInfoPeer       = 1
	inetConf           = 1
	inet6AddrGenMode   = 8
	addrGenModeNone    = 1
	devconfForwarding  = 1
	devconfProxyARP    = 3
	devconfRedirects   = 4
	devconfSendRedir   = 6
	devconfRPFilter    = 8
	devconfRouteLocal  = 26
	ackCreate          = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	ack                = unix.NLM_F_REQUEST | unix.NLM_F_ACK
	request            = unix.NLM_F_REQUEST
	rtnhOnLink         = 4
	ntfPermanentStates = unix.NUD_PERMANENT
)

// MAC is an Ethernet address.
type MAC [6]byte

// String writes the usual colon form.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Veth describes a pair that is made in place: the host end in the caller's namespace, the peer in the namespace
// that PeerNS is open on.
type Veth struct {
	Name, Peer   string
	MAC, PeerMAC MAC
	MTU          int
	PeerNS       int
	Group        uint32
	// Master is the index of the bridge whose port the host end becomes; 0 for none.
	Master int32
}

func ifinfo(index int32, flags, change uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// AddVeth makes both ends with names, addresses and MTU, one queue each, and the host end up, in one request: no
// move between namespaces, which would wait for RCU (15 ms), and no second queue, which would too.
func AddVeth(v Veth) nlwire.Op {
	end := func(m *nlwire.Builder, name string, mac MAC) {
		m.Str(unix.IFLA_IFNAME, name).Bytes(unix.IFLA_ADDRESS, mac[:])
		if v.MTU > 0 {
			m.U32(unix.IFLA_MTU, uint32(v.MTU))
		}
		m.U32(unix.IFLA_NUM_TX_QUEUES, 1).U32(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	m := nlwire.New(unix.RTM_NEWLINK, ackCreate, ifinfo(0, unix.IFF_UP, unix.IFF_UP))
	end(m, v.Name, v.MAC)
	m.U32(unix.IFLA_GROUP, v.Group)
	if v.Master != 0 {
		m.U32(unix.IFLA_MASTER, uint32(v.Master))
	}
	m.Nest(unix.IFLA_LINKINFO, func(m *nlwire.Builder) {
		m.Bytes(unix.IFLA_INFO_KIND, []byte("veth"))
		m.Nest(unix.IFLA_INFO_DATA, func(m *nlwire.Builder) {
			m.Nest(vethInfoPeer, func(m *nlwire.Builder) {
				m.Raw(ifinfo(0, 0, 0))
				end(m, v.Peer, v.PeerMAC)
				m.U32(unix.IFLA_NET_NS_FD, uint32(v.PeerNS))
			})
		})
	})
	return nlwire.Op{What: fmt.Sprintf("create veth %s with peer %s", v.Name, v.Peer), Msg: m.Done()}
}

// HostEnd sets what only a second request can set on the host end: the alias, IPv4 forwarding on, strict reverse
// path filter, no redirects, no proxy ARP, no automatic IPv6 link-local address; localnet only where a host port
// is served on 127.0.0.1 and the caller has closed the way in.
func HostEnd(index int32, alias string, ipv6, localnet bool) nlwire.Op {
	m := nlwire.New(unix.RTM_SETLINK, ack, ifinfo(index, 0, 0))
	m.Bytes(unix.IFLA_IFALIAS, []byte(alias))
	m.Nest(unix.IFLA_AF_SPEC, func(m *nlwire.Builder) {
		m.Nest(unix.AF_INET, func(m *nlwire.Builder) {
			m.Nest(inetConf, func(m *nlwire.Builder) {
				m.U32(devconfForwarding, 1).U32(devconfProxyARP, 0).U32(devconfRedirects, 0).
					U32(devconfSendRedir, 0).U32(devconfRPFilter, 1)
				if localnet {
					m.U32(devconfRouteLocal, 1)
				}
			})
		})
		if ipv6 {
			m.Nest(unix.AF_INET6, func(m *nlwire.Builder) { m.U8(inet6AddrGenMode, addrGenModeNone) })
		}
	})
	return nlwire.Op{What: fmt.Sprintf("configure link %d", index), Msg: m.Done()}
}

// SetUp brings a link up.
func SetUp(index int32) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("set link %d up", index),
		Msg:  nlwire.New(unix.RTM_SETLINK, ack, ifinfo(index, unix.IFF_UP, unix.IFF_UP)).Done(),
	}
}

// Retire takes a link out of sight without the RCU waits of down and delete: it gets a new name and a group that
// a reaper deletes at once. Renaming an interface that is up needs Linux 6.2.
func Retire(index int32, name string, group uint32) nlwire.Op {
	m := nlwire.New(unix.RTM_SETLINK, ack, ifinfo(index, 0, 0))
	if name != "" {
		m.Str(unix.IFLA_IFNAME, name)
	}
	m.U32(unix.IFLA_GROUP, group)
	return nlwire.Op{What: fmt.Sprintf("retire link %d", index), Msg: m.Done(), Tolerate: []unix.Errno{unix.ENODEV}}
}

// DelLink deletes a link and its peer.
func DelLink(index int32) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("delete link %d", index), Tolerate: []unix.Errno{unix.ENODEV},
		Msg: nlwire.New(unix.RTM_DELLINK, ack, ifinfo(index, 0, 0)).Done(),
	}
}

// DelGroup deletes every link of a group and their peers with one wait for RCU.
func DelGroup(group uint32) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("delete links of group %#x", group), Tolerate: []unix.Errno{unix.ENODEV},
		Msg: nlwire.New(unix.RTM_DELLINK, ack, ifinfo(0, 0, 0)).U32(unix.IFLA_GROUP, group).Done(),
	}
}

// Link is what the plugin wants to know of an interface.
type Link struct {
	Index int32
	// Peer is the index of a veth's other end, in the other end's namespace.
	Peer  int32
	Name  string
	Alias string
	MTU   int
	MAC   MAC
	Up    bool
	Group uint32
	// Kind is "veth", "bridge" and so on; Master is the index of the bridge that the link is a port of.
	Kind   string
	Master int32
	// Promisc says whether anybody wants all packets; Allmulti is the interface's own flag.
	Promisc, Allmulti bool
	TxQLen            int
}

// GetLink asks for one link by name.
func GetLink(name string) []byte {
	return nlwire.New(unix.RTM_GETLINK, request, ifinfo(0, 0, 0)).Str(unix.IFLA_IFNAME, name).Done()
}

// GetLinkIndex asks for one link by index.
func GetLinkIndex(index int32) []byte {
	return nlwire.New(unix.RTM_GETLINK, request, ifinfo(index, 0, 0)).Done()
}

// DumpLinks asks for all links.
func DumpLinks() []byte {
	return nlwire.New(unix.RTM_GETLINK, request|unix.NLM_F_DUMP, ifinfo(0, 0, 0)).Done()
}

// ParseLink reads an RTM_NEWLINK message.
func ParseLink(m nlwire.Message) (l Link, ok bool) {
	if m.Type != unix.RTM_NEWLINK || len(m.Body) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.Index = int32(nlwire.U32(m.Body[4:]))
	flags := nlwire.U32(m.Body[8:])
	l.Up, l.Allmulti = flags&unix.IFF_UP != 0, flags&unix.IFF_ALLMULTI != 0
	nlwire.Attrs(m.Body[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = nlwire.Str(v)
		case unix.IFLA_IFALIAS:
			l.Alias = nlwire.Str(v)
		case unix.IFLA_MTU:
			l.MTU = int(nlwire.U32(v))
		case unix.IFLA_ADDRESS:
			copy(l.MAC[:], v)
		case unix.IFLA_LINK:
			l.Peer = int32(nlwire.U32(v))
		case unix.IFLA_GROUP:
			l.Group = nlwire.U32(v)
		case unix.IFLA_MASTER:
			l.Master = int32(nlwire.U32(v))
		case unix.IFLA_PROMISCUITY:
			l.Promisc = nlwire.U32(v) > 0
		case unix.IFLA_TXQLEN:
			l.TxQLen = int(nlwire.U32(v))
		case unix.IFLA_LINKINFO:
			nlwire.Attrs(v, func(typ uint16, v []byte) {
				if typ == unix.IFLA_INFO_KIND {
					l.Kind = nlwire.Str(v)
				}
			})
		}
	})
	return l, true
}
