// Package nft compiles nf_tables requests (linux/netfilter/nf_tables.h) and sends them as one transaction. It
// knows tables, chains, rules, sets and elements, not what they are for; package ruleset does. Compilation is
// pure. Only what the plugin uses is here, without reflection and without one read per object, because the
// plugin lives for a few milliseconds.
package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Hook priorities of the inet family (linux/netfilter_ipv4.h).
const (
	PriorityRaw     = -300
	PriorityDstNAT  = -100
	PriorityFilter  = 0
	PrioritySrcNAT  = 100
	requestFlags    = unix.NLM_F_REQUEST
	createFlags     = unix.NLM_F_REQUEST | unix.NLM_F_CREATE
	nfprotoInet     = 1
	listElem        = 1
	nftaSetDesc     = 9
	nftaSetDescSize = 1
)

// Hooks (NF_INET_*).
const (
	HookPrerouting  = 0
	HookInput       = 1
	HookForward     = 2
	HookOutput      = 3
	HookPostrouting = 4
)

func message(typ, flags uint16) *nlwire.Builder {
	return nlwire.New(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, []byte{nfprotoInet, 0, 0, 0})
}

// Table is one table of the inet family.
type Table struct{ Name string }

// Add creates the table if it is missing.
func (t Table) Add() nlwire.Op {
	return nlwire.Op{
		What: "add table inet " + t.Name,
		Msg:  message(unix.NFT_MSG_NEWTABLE, createFlags).Str(unix.NFTA_TABLE_NAME, t.Name).U32BE(unix.NFTA_TABLE_FLAGS, 0).Done(),
	}
}

// Delete deletes the table with everything in it.
func (t Table) Delete() nlwire.Op {
	return nlwire.Op{
		What: "delete table inet " + t.Name,
		Msg:  message(unix.NFT_MSG_DELTABLE, requestFlags).Str(unix.NFTA_TABLE_NAME, t.Name).Done(),
	}
}

// Chain is a chain of a table; a base chain when Type is set.
type Chain struct {
	Name string
	// Type is "filter", "nat" or empty for a chain that is only jumped to.
	Type     string
	Hook     uint32
	Priority int32
}

// AddChain creates a chain, with policy accept.
func (t Table) AddChain(c Chain) nlwire.Op {
	m := message(unix.NFT_MSG_NEWCHAIN, createFlags).Str(unix.NFTA_CHAIN_TABLE, t.Name).Str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Type != "" {
		m.Nest(unix.NFTA_CHAIN_HOOK, func(m *nlwire.Builder) {
			m.U32BE(unix.NFTA_HOOK_HOOKNUM, c.Hook).U32BE(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
		})
		m.U32BE(unix.NFTA_CHAIN_POLICY, 1).Str(unix.NFTA_CHAIN_TYPE, c.Type)
	}
	return nlwire.Op{What: "add chain " + c.Name, Msg: m.Done()}
}

// AddRule appends a rule to a chain.
func (t Table) AddRule(chain string, exprs ...Expr) nlwire.Op {
	m := message(unix.NFT_MSG_NEWRULE, createFlags|unix.NLM_F_APPEND).
		Str(unix.NFTA_RULE_TABLE, t.Name).Str(unix.NFTA_RULE_CHAIN, chain)
	m.Nest(unix.NFTA_RULE_EXPRESSIONS, func(m *nlwire.Builder) {
		for _, e := range exprs {
			m.Nest(listElem, func(m *nlwire.Builder) {
				m.Str(unix.NFTA_EXPR_NAME, e.name)
				m.Nest(unix.NFTA_EXPR_DATA, e.fill)
			})
		}
	})
	return nlwire.Op{What: "add rule to " + chain, Msg: m.Done()}
}

// Set is a set, or a map when Data is set. A key of several types is their concatenation, each padded to four
// bytes.
type Set struct {
	Name     string
	Key      []Type
	Data     []Type
	Interval bool
}

// Type is a data type as nft(8) shows it: the number is nft's own, the size is in bytes.
type Type struct{ number, size uint32 }

// The types that keys and values are made of (nft's datatype.h).

// IPv4 is ipv4_addr.
func IPv4() Type { return Type{7, 4} }

// IPv6 is ipv6_addr.
func IPv6() Type { return Type{8, 16} }

// Ether is ether_addr.
func Ether() Type { return Type{9, 6} }

// Proto is inet_proto, an IP protocol's number.
func Proto() Type { return Type{12, 1} }

// Service is inet_service, a port in network order.
func Service() Type { return Type{13, 2} }

// IfName is ifname, padded with zeros.
func IfName() Type { return Type{41, 16} }

func concat(types []Type) (number, size uint32) {
	for _, t := range types {
		number = number<<6 | t.number
		if len(types) == 1 {
			return number, t.size
		}
		size += (t.size + 3) &^ 3
	}
	return number, size
}

// AddSet creates a set. id is any number that is unique in the transaction.
func (t Table) AddSet(s Set, id uint32) nlwire.Op {
	var flags uint32
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.Data != nil {
		flags |= unix.NFT_SET_MAP
	}
	kt, kl := concat(s.Key)
	m := message(unix.NFT_MSG_NEWSET, createFlags).Str(unix.NFTA_SET_TABLE, t.Name).Str(unix.NFTA_SET_NAME, s.Name).
		U32BE(unix.NFTA_SET_FLAGS, flags).U32BE(unix.NFTA_SET_KEY_TYPE, kt).U32BE(unix.NFTA_SET_KEY_LEN, kl)
	if s.Data != nil {
		dt, dl := concat(s.Data)
		m.U32BE(unix.NFTA_SET_DATA_TYPE, dt).U32BE(unix.NFTA_SET_DATA_LEN, dl)
	}
	m.U32BE(unix.NFTA_SET_ID, id)
	return nlwire.Op{What: "add set " + s.Name, Msg: m.Done()}
}

// Element is one element of a set or map.
type Element struct {
	Set  string
	Key  []byte
	Data []byte
	// IntervalEnd makes Key the first value after an interval instead of its start.
	IntervalEnd bool
}

// Join concatenates key fields, each padded to four bytes.
func Join(fields ...[]byte) []byte {
	var b []byte
	for _, f := range fields {
		b = append(b, f...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// Port is a port in network order.
func Port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

// Name16 is an interface name padded as a key field.
func Name16(s string) []byte {
	b := make([]byte, 16)
	copy(b, s)
	return b
}

func elements(m *nlwire.Builder, table string, es []Element) *nlwire.Builder {
	m.Str(unix.NFTA_SET_ELEM_LIST_TABLE, table).Str(unix.NFTA_SET_ELEM_LIST_SET, es[0].Set)
	return m.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(m *nlwire.Builder) {
		for _, e := range es {
			m.Nest(listElem, func(m *nlwire.Builder) {
				m.Nest(unix.NFTA_SET_ELEM_KEY, func(m *nlwire.Builder) { m.Bytes(unix.NFTA_DATA_VALUE, e.Key) })
				if e.Data != nil {
					m.Nest(unix.NFTA_SET_ELEM_DATA, func(m *nlwire.Builder) { m.Bytes(unix.NFTA_DATA_VALUE, e.Data) })
				}
				if e.IntervalEnd {
					m.U32BE(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
				}
			})
		}
	})
}

// chunk is how many elements fit into one message, whose attributes end at 64 KiB; the longest element here takes
// less than 100 bytes.
const chunk = 500

func (t Table) elementOps(es []Element, verb string, typ, flags uint16) []nlwire.Op {
	var ops []nlwire.Op
	for len(es) > 0 {
		n := 1
		for n < len(es) && n < chunk && es[n].Set == es[0].Set {
			n++
		}
		ops = append(ops, nlwire.Op{
			What: fmt.Sprintf("%s %d elements of set %s", verb, n, es[0].Set),
			Msg:  elements(message(typ, flags), t.Name, es[:n]).Done(),
		})
		es = es[n:]
	}
	return ops
}

// AddElements adds elements; neighbours of the same set share a message. An element that is there is no error,
// unless its value differs.
func (t Table) AddElements(es []Element) []nlwire.Op {
	return t.elementOps(es, "add", unix.NFT_MSG_NEWSETELEM, createFlags)
}

// DeleteElements deletes elements; one that is missing fails the transaction.
func (t Table) DeleteElements(es []Element) []nlwire.Op {
	return t.elementOps(es, "delete", unix.NFT_MSG_DELSETELEM, requestFlags)
}

// GetElement asks for one element; ENOENT says that it is missing.
func (t Table) GetElement(e Element) []byte {
	e.Data = nil
	return elements(message(unix.NFT_MSG_GETSETELEM, requestFlags), t.Name, []Element{e}).Done()
}
