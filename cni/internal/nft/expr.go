package nft

import (
	"encoding/binary"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Expr is one expression of a rule: nft's bytecode.
type Expr struct {
	name string
	fill func(*nlwire.Builder)
}

// Reg is a four-byte register; longer values take the ones that follow.
type Reg uint32

// R0 is the first register (NFT_REG32_00); R0+4 starts four registers later.
const R0 Reg = unix.NFT_REG32_00

// Keys of [Meta].
const (
	MetaIifName  = unix.NFT_META_IIFNAME
	MetaOifName  = unix.NFT_META_OIFNAME
	MetaNFProto  = unix.NFT_META_NFPROTO
	MetaL4Proto  = unix.NFT_META_L4PROTO
	baseLink     = unix.NFT_PAYLOAD_LL_HEADER
	baseNetwork  = unix.NFT_PAYLOAD_NETWORK_HEADER
	baseTransp   = unix.NFT_PAYLOAD_TRANSPORT_HEADER
	fibAddrType  = 3
	fibDaddr     = 2
	fullyRandom  = 1 << 4
	verdictReg   = unix.NFT_REG_VERDICT
	lookupInvert = 1
)

// Meta loads packet metadata.
func Meta(key uint32, dst Reg) Expr {
	return Expr{"meta", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_META_KEY, key).U32BE(unix.NFTA_META_DREG, uint32(dst))
	}}
}

func payload(base, offset, n uint32, dst Reg) Expr {
	return Expr{"payload", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_PAYLOAD_DREG, uint32(dst)).U32BE(unix.NFTA_PAYLOAD_BASE, base).
			U32BE(unix.NFTA_PAYLOAD_OFFSET, offset).U32BE(unix.NFTA_PAYLOAD_LEN, n)
	}}
}

// EtherSource loads the source MAC (6 bytes).
func EtherSource(dst Reg) Expr { return payload(baseLink, 6, 6, dst) }

// SourceIP loads the source address (4 or 16 bytes).
func SourceIP(v6 bool, dst Reg) Expr {
	if v6 {
		return payload(baseNetwork, 8, 16, dst)
	}
	return payload(baseNetwork, 12, 4, dst)
}

// DestIP loads the destination address (4 or 16 bytes).
func DestIP(v6 bool, dst Reg) Expr {
	if v6 {
		return payload(baseNetwork, 24, 16, dst)
	}
	return payload(baseNetwork, 16, 4, dst)
}

// DestIPFirstByte loads the first byte of an IPv4 destination.
func DestIPFirstByte(dst Reg) Expr { return payload(baseNetwork, 16, 1, dst) }

// SourceIPFirstByte loads the first byte of an IPv4 source.
func SourceIPFirstByte(dst Reg) Expr { return payload(baseNetwork, 12, 1, dst) }

// DestPort loads the destination port of TCP, UDP or SCTP.
func DestPort(dst Reg) Expr { return payload(baseTransp, 2, 2, dst) }

// Ports loads source and destination port as four bytes.
func Ports(dst Reg) Expr { return payload(baseTransp, 0, 4, dst) }

// VXLANID loads the network identifier (3 bytes) of a VXLAN packet, which stands behind the UDP header and four bytes.
func VXLANID(dst Reg) Expr { return payload(baseTransp, 12, 3, dst) }

// ICMPType loads the type of an ICMP or ICMPv6 message.
func ICMPType(dst Reg) Expr { return payload(baseTransp, 0, 1, dst) }

func compare(op uint32, src Reg, v []byte) Expr {
	return Expr{"cmp", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_CMP_SREG, uint32(src)).U32BE(unix.NFTA_CMP_OP, op)
		m.Nest(unix.NFTA_CMP_DATA, func(m *nlwire.Builder) { m.Bytes(unix.NFTA_DATA_VALUE, v) })
	}}
}

// Equal goes on if the register starts with v. For a name that is a prefix match, as nft's "bth*".
func Equal(src Reg, v ...byte) Expr { return compare(unix.NFT_CMP_EQ, src, v) }

// NotEqual goes on if the register does not start with v.
func NotEqual(src Reg, v ...byte) Expr { return compare(unix.NFT_CMP_NEQ, src, v) }

// In goes on if the set has the key that starts at src.
func In(set string, src Reg) Expr {
	return Expr{"lookup", func(m *nlwire.Builder) {
		m.Str(unix.NFTA_LOOKUP_SET, set).U32BE(unix.NFTA_LOOKUP_SREG, uint32(src))
	}}
}

// NotIn goes on if the set lacks the key that starts at src.
func NotIn(set string, src Reg) Expr {
	return Expr{"lookup", func(m *nlwire.Builder) {
		m.Str(unix.NFTA_LOOKUP_SET, set).U32BE(unix.NFTA_LOOKUP_SREG, uint32(src)).
			U32BE(unix.NFTA_LOOKUP_FLAGS, lookupInvert)
	}}
}

// Map loads the value of the key that starts at src, or ends the rule.
func Map(set string, src, dst Reg) Expr {
	return Expr{"lookup", func(m *nlwire.Builder) {
		m.Str(unix.NFTA_LOOKUP_SET, set).U32BE(unix.NFTA_LOOKUP_SREG, uint32(src)).
			U32BE(unix.NFTA_LOOKUP_DREG, uint32(dst))
	}}
}

// DestIsLocal goes on if the destination is one of this host's own addresses (fib daddr type local).
func DestIsLocal() []Expr {
	return []Expr{{"fib", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_FIB_DREG, uint32(R0)).U32BE(unix.NFTA_FIB_RESULT, fibAddrType).
			U32BE(unix.NFTA_FIB_FLAGS, fibDaddr)
	}}, Equal(R0, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)...)}
}

// WasDNATed goes on if the connection's destination was rewritten (ct status dnat). It uses the first register.
func WasDNATed() []Expr {
	const ctStatus, destNAT = 2, 1 << 5
	mask := binary.NativeEndian.AppendUint32(nil, destNAT)
	return []Expr{{"ct", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_CT_DREG, uint32(R0)).U32BE(unix.NFTA_CT_KEY, ctStatus)
	}}, {"bitwise", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_BITWISE_SREG, uint32(R0)).U32BE(unix.NFTA_BITWISE_DREG, uint32(R0)).U32BE(unix.NFTA_BITWISE_LEN, 4)
		m.Nest(unix.NFTA_BITWISE_MASK, func(m *nlwire.Builder) { m.Bytes(unix.NFTA_DATA_VALUE, mask) })
		m.Nest(unix.NFTA_BITWISE_XOR, func(m *nlwire.Builder) { m.Bytes(unix.NFTA_DATA_VALUE, make([]byte, 4)) })
	}}, NotEqual(R0, 0, 0, 0, 0)}
}

// NoTrack keeps the packet from being tracked as part of a connection. It is for chains of priority raw.
func NoTrack() Expr { return Expr{"notrack", func(*nlwire.Builder) {}} }

// Counter counts what reaches it.
func Counter() Expr { return Expr{"counter", func(*nlwire.Builder) {}} }

func verdict(code int32, chain string) Expr {
	return Expr{"immediate", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_IMMEDIATE_DREG, verdictReg)
		m.Nest(unix.NFTA_IMMEDIATE_DATA, func(m *nlwire.Builder) {
			m.Nest(unix.NFTA_DATA_VERDICT, func(m *nlwire.Builder) {
				m.U32BE(unix.NFTA_VERDICT_CODE, uint32(code))
				if chain != "" {
					m.Str(unix.NFTA_VERDICT_CHAIN, chain)
				}
			})
		})
	}}
}

// Drop ends the packet.
func Drop() Expr { return verdict(0, "") }

// Accept ends this base chain; another table may still drop the packet.
func Accept() Expr { return verdict(1, "") }

// Return goes back to the calling chain, or to the policy.
func Return() Expr { return verdict(unix.NFT_RETURN, "") }

// Jump continues in another chain.
func Jump(chain string) Expr { return verdict(unix.NFT_JUMP, chain) }

// DNAT rewrites the destination to the address at addr and the port at port.
func DNAT(v6 bool, addr, port Reg) Expr {
	fam := uint32(unix.NFPROTO_IPV4)
	if v6 {
		fam = unix.NFPROTO_IPV6
	}
	return Expr{"nat", func(m *nlwire.Builder) {
		m.U32BE(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT).U32BE(unix.NFTA_NAT_FAMILY, fam).
			U32BE(unix.NFTA_NAT_REG_ADDR_MIN, uint32(addr)).U32BE(unix.NFTA_NAT_REG_PROTO_MIN, uint32(port))
	}}
}

// Masquerade rewrites the source to an address of the outgoing interface with a port that is hard to guess.
func Masquerade() Expr {
	return Expr{"masq", func(m *nlwire.Builder) { m.U32BE(unix.NFTA_MASQ_FLAGS, fullyRandom) }}
}
