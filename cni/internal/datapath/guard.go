package datapath

import (
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// TableName is the agent's nftables table.
const TableName = "berth-netd"

// guard says from whom VXLAN packets are taken: one that comes to our port with our identifier from anybody but a
// known VTEP is dropped before anything looks into it. The kernel's own device has no such list: without learning it
// answers to nobody unknown, but it delivers what anybody wraps. It hooks input and output, which wrapped packets alone
// pass: what is inside of them is forwarded, and pays for no rule of ours.
//
// What the node wraps is not tracked as a connection: no masquerading can touch it then (a second rewriting of a wrapped
// packet is what breaks its checksum), and it fills no table.
type guard struct {
	port  uint16
	vni   uint32
	vteps []netip.Addr // sorted
}

func (g guard) equal(o guard) bool {
	return g.port == o.port && g.vni == o.vni && slices.Equal(g.vteps, o.vteps)
}

func vtepSet(v6 bool) string {
	if v6 {
		return "vtep6"
	}
	return "vtep4"
}

func element(a netip.Addr) nft.Element { return nft.Element{Set: vtepSet(a.Is6()), Key: a.AsSlice()} }

// whole is the transaction that replaces the table by what g says, at one instant.
func (g guard) whole() []nlwire.Op {
	t := nft.Table{Name: TableName}
	ops := []nlwire.Op{
		t.Add(), t.Delete(), t.Add(),
		t.AddSet(nft.Set{Name: "vtep4", Key: []nft.Type{nft.IPv4()}}, 1),
		t.AddSet(nft.Set{Name: "vtep6", Key: []nft.Type{nft.IPv6()}}, 2),
		t.AddChain(nft.Chain{Name: "tunnel", Type: "filter", Hook: nft.HookInput, Priority: nft.PriorityRaw}),
		t.AddChain(nft.Chain{Name: "wrapped", Type: "filter", Hook: nft.HookOutput, Priority: nft.PriorityRaw}),
	}
	ours := []nft.Expr{
		nft.Meta(nft.MetaL4Proto, nft.R0), nft.Equal(nft.R0, unix.IPPROTO_UDP), nft.DestPort(nft.R0), nft.Equal(nft.R0, nft.Port(g.port)...),
		nft.VXLANID(nft.R0), nft.Equal(nft.R0, byte(g.vni>>16), byte(g.vni>>8), byte(g.vni)),
	}
	ops = append(ops, t.AddRule("wrapped", slices.Concat(ours, []nft.Expr{nft.NoTrack()})...))
	for _, v6 := range []bool{false, true} {
		proto := byte(unix.NFPROTO_IPV4)
		if v6 {
			proto = unix.NFPROTO_IPV6
		}
		family := []nft.Expr{nft.Meta(nft.MetaNFProto, nft.R0), nft.Equal(nft.R0, proto)} // first: the other's rule ends here
		ops = append(ops, t.AddRule("tunnel", slices.Concat(family, ours, []nft.Expr{
			nft.SourceIP(v6, nft.R0), nft.NotIn(vtepSet(v6), nft.R0), nft.Counter(), nft.Drop(),
		})...))
	}
	return append(ops, t.AddElements(elements(g.vteps))...)
}

func elements(vteps []netip.Addr) []nft.Element {
	es := make([]nft.Element, len(vteps))
	for i, a := range vteps {
		es[i] = element(a)
	}
	return es
}

// from is the transaction that makes g of have, which is in the kernel.
func (g guard) from(have guard) []nlwire.Op {
	if g.port != have.port || g.vni != have.vni {
		return g.whole()
	}
	t := nft.Table{Name: TableName}
	missing := func(a, b []netip.Addr) (out []netip.Addr) {
		for _, x := range a {
			if _, ok := slices.BinarySearchFunc(b, x, netip.Addr.Compare); !ok {
				out = append(out, x)
			}
		}
		return out
	}
	return append(t.AddElements(elements(missing(g.vteps, have.vteps))), t.DeleteElements(elements(missing(have.vteps, g.vteps)))...)
}

// guardOf is what a fabric asks for; ok is false where there is no tunnel, and then no table.
func guardOf(tunnel fabric.Tunnel, vteps []netip.Addr, devices int) (guard, bool) {
	t := tunnel.WithDefaults()
	return guard{port: t.Port, vni: t.VNI, vteps: slices.Compact(slices.Clone(vteps))}, devices > 0
}
