package rtnl

import (
	"encoding/binary"
	"fmt"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Attributes of bridges and their ports (linux/if_link.h, linux/if_bridge.h).
const (
	bridgeVlanFiltering = 7
	bridgeCallIP        = 36
	bridgeCallIP6       = 37
	infoSlaveKind       = 4
	infoSlaveData       = 5
	portHairpin         = 4
	portIsolated        = 33
	bridgeVlanInfo      = 2
	bridgeFlags         = 0
	bridgeFlagsMaster   = 1
	vlanPVID            = 2
	vlanUntagged        = 4
)

// AddBridge makes a bridge and brings it up; one that exists is no error. A bridge with an address of its own keeps
// it, where others take that of a port. mtu 0 leaves the kernel's.
func AddBridge(name string, mac MAC, mtu int, vlans bool) nlwire.Op {
	m := nlwire.New(unix.RTM_NEWLINK, ackCreate, ifinfo(0, unix.IFF_UP, unix.IFF_UP)).
		Str(unix.IFLA_IFNAME, name).Bytes(unix.IFLA_ADDRESS, mac[:])
	if mtu > 0 {
		m.U32(unix.IFLA_MTU, uint32(mtu))
	}
	m.Nest(unix.IFLA_LINKINFO, func(m *nlwire.Builder) {
		m.Bytes(unix.IFLA_INFO_KIND, []byte("bridge"))
		if vlans {
			m.Nest(unix.IFLA_INFO_DATA, func(m *nlwire.Builder) { m.U8(bridgeVlanFiltering, 1) })
		}
	})
	return nlwire.Op{What: "create bridge " + name, Msg: m.Done(), Tolerate: []unix.Errno{unix.EEXIST}}
}

// FilterBridge makes what a bridge forwards pass the rules for IP packets, whatever the machine's default is.
func FilterBridge(index int32) nlwire.Op {
	m := nlwire.New(unix.RTM_NEWLINK, ack, ifinfo(index, 0, 0))
	m.Nest(unix.IFLA_LINKINFO, func(m *nlwire.Builder) {
		m.Bytes(unix.IFLA_INFO_KIND, []byte("bridge"))
		m.Nest(unix.IFLA_INFO_DATA, func(m *nlwire.Builder) { m.U8(bridgeCallIP, 1).U8(bridgeCallIP6, 1) })
	})
	return nlwire.Op{What: fmt.Sprintf("let bridge %d pass its packets to the rules", index), Msg: m.Done()}
}

// Port is how a bridge treats one of its ports.
type Port struct{ Hairpin, Isolated bool }

// Enslave makes a link a port of a bridge.
func Enslave(index, bridge int32) nlwire.Op {
	m := nlwire.New(unix.RTM_SETLINK, ack, ifinfo(index, 0, 0)).U32(unix.IFLA_MASTER, uint32(bridge))
	return nlwire.Op{What: fmt.Sprintf("make link %d a port of bridge %d", index, bridge), Msg: m.Done()}
}

// SetPort configures a port of a bridge. It is ifinfo of the bridge family, which keeps to the port's attributes.
func SetPort(index int32, p Port) nlwire.Op {
	flag := func(b bool) uint8 {
		if b {
			return 1
		}
		return 0
	}
	fixed := ifinfo(index, 0, 0)
	fixed[0] = unix.AF_BRIDGE
	m := nlwire.New(unix.RTM_SETLINK, ack, fixed)
	m.Nest(unix.IFLA_PROTINFO, func(m *nlwire.Builder) {
		m.U8(portHairpin, flag(p.Hairpin)).U8(portIsolated, flag(p.Isolated))
	})
	return nlwire.Op{What: fmt.Sprintf("configure bridge port %d", index), Msg: m.Done()}
}

// SetHairpin lets a bridge send frames back to the port they came from, and leaves the rest of the port alone.
func SetHairpin(index int32) nlwire.Op {
	fixed := ifinfo(index, 0, 0)
	fixed[0] = unix.AF_BRIDGE
	m := nlwire.New(unix.RTM_SETLINK, ack, fixed)
	m.Nest(unix.IFLA_PROTINFO, func(m *nlwire.Builder) { m.U8(portHairpin, 1) })
	return nlwire.Op{What: fmt.Sprintf("let bridge port %d have its own frames back", index), Msg: m.Done()}
}

// Vlan is one VLAN of a bridge port.
type Vlan struct {
	ID uint16
	// Native VLANs have untagged frames in both directions.
	Native bool
}

func vlanMessage(typ uint16, index int32, v Vlan, self bool) []byte {
	fixed := ifinfo(index, 0, 0)
	fixed[0] = unix.AF_BRIDGE
	m := nlwire.New(typ, ack, fixed)
	m.Nest(unix.IFLA_AF_SPEC, func(m *nlwire.Builder) {
		if !self {
			m.Bytes(bridgeFlags, binary.NativeEndian.AppendUint16(nil, bridgeFlagsMaster))
		}
		var flags uint16
		if v.Native {
			flags = vlanPVID | vlanUntagged
		}
		b := binary.NativeEndian.AppendUint16(nil, flags)
		m.Bytes(bridgeVlanInfo, binary.NativeEndian.AppendUint16(b, v.ID))
	})
	return m.Done()
}

// AddVlan lets a VLAN through a port.
func AddVlan(index int32, v Vlan) nlwire.Op {
	return nlwire.Op{What: fmt.Sprintf("add VLAN %d to bridge port %d", v.ID, index), Msg: vlanMessage(unix.RTM_SETLINK, index, v, false)}
}

// DelVlan takes a VLAN off a port; 1 is there from the beginning.
func DelVlan(index int32, id uint16) nlwire.Op {
	return nlwire.Op{
		What: fmt.Sprintf("take VLAN %d off bridge port %d", id, index), Tolerate: []unix.Errno{unix.ENOENT},
		Msg: vlanMessage(unix.RTM_DELLINK, index, Vlan{ID: id}, false),
	}
}

// Attrs are attributes of any link; a nil pointer leaves one as it is.
type Attrs struct {
	MAC               *MAC
	MTU               *int
	Promisc, Allmulti *bool
	TxQLen            *int
	Alias             *string
}

// SetAttrs changes attributes of a link.
func SetAttrs(index int32, a Attrs) nlwire.Op {
	var flags, change uint32
	for _, f := range []struct {
		want *bool
		bit  uint32
	}{{a.Promisc, unix.IFF_PROMISC}, {a.Allmulti, unix.IFF_ALLMULTI}} {
		if f.want == nil {
			continue
		}
		change |= f.bit
		if *f.want {
			flags |= f.bit
		}
	}
	m := nlwire.New(unix.RTM_SETLINK, ack, ifinfo(index, flags, change))
	if a.MAC != nil {
		m.Bytes(unix.IFLA_ADDRESS, a.MAC[:])
	}
	if a.MTU != nil {
		m.U32(unix.IFLA_MTU, uint32(*a.MTU))
	}
	if a.TxQLen != nil {
		m.U32(unix.IFLA_TXQLEN, uint32(*a.TxQLen))
	}
	if a.Alias != nil {
		m.Bytes(unix.IFLA_IFALIAS, []byte(*a.Alias))
	}
	return nlwire.Op{What: fmt.Sprintf("change link %d", index), Msg: m.Done()}
}
