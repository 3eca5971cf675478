// Package ctnl deletes connection tracking entries by exact tuple (linux/netfilter/nfnetlink_conntrack.h). An
// entry remembers where the first packet of a flow was sent, so a UDP peer that never pauses would go on talking
// to a host port's previous owner, or to nobody, for as long as it talks.
package ctnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Numbers of nfnetlink_conntrack.h that golang.org/x/sys lacks.
const (
	subsys      = 1
	msgGet      = 1
	msgDelete   = 2
	ctaOrig     = 1
	ctaReply    = 2
	ctaID       = 12
	ctaZone     = 18
	ctaFilter   = 25
	tupleIP     = 1
	tupleProto  = 2
	ipSrc4      = 1
	ipDst4      = 2
	ipSrc6      = 3
	ipDst6      = 4
	protoNum    = 1
	protoSrc    = 2
	protoDst    = 3
	filterOrig  = 1
	filterProto = 1 << 3
	filterDst   = 1 << 5
)

// Flow is one entry: where its first packet went, and whence the answers come.
type Flow struct {
	Proto              byte
	Dst, ReplySrc      netip.Addr
	DstPort, ReplyPort uint16

	orig, id, zone []byte
}

func family(v6 bool) byte {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// Flush deletes the entries of one family and protocol that were first sent to port dst and that match wants
// gone. It returns how many there were.
func Flush(c *nlwire.Conn, v6 bool, proto byte, dst uint16, match func(Flow) bool) (int, error) {
	what := fmt.Sprintf("list flows of protocol %d to port %d", proto, dst)
	ms, err := c.Query(what, dump(v6, proto, dst, true))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no CTA_FILTER before Linux 5.8
		ms, err = c.Query(what, dump(v6, proto, dst, false))
	}
	if err != nil {
		return 0, err
	}
	var ops []nlwire.Op
	for _, m := range ms {
		f, ok := parse(m)
		if ok && f.Proto == proto && f.DstPort == dst && match(f) {
			ops = append(ops, remove(v6, f))
		}
	}
	return len(ops), c.Do(ops)
}

func dump(v6 bool, proto byte, dst uint16, filter bool) []byte {
	m := nlwire.New(subsys<<8|msgGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, []byte{family(v6), 0, 0, 0})
	if filter {
		m.Nest(ctaOrig, func(m *nlwire.Builder) {
			m.Nest(tupleProto, func(m *nlwire.Builder) { m.U8(protoNum, proto).U16BE(protoDst, dst) })
		})
		m.Nest(ctaFilter, func(m *nlwire.Builder) { m.U32(filterOrig, filterProto|filterDst) })
	}
	return m.Done()
}

func remove(v6 bool, f Flow) nlwire.Op {
	m := nlwire.New(subsys<<8|msgDelete, unix.NLM_F_REQUEST|unix.NLM_F_ACK, []byte{family(v6), 0, 0, 0})
	m.Bytes(ctaOrig|unix.NLA_F_NESTED, f.orig)
	if f.id != nil {
		m.Bytes(ctaID, f.id)
	}
	if f.zone != nil {
		m.Bytes(ctaZone, f.zone)
	}
	return nlwire.Op{
		What: fmt.Sprintf("delete the flow to %s port %d", f.Dst, f.DstPort), Msg: m.Done(),
		Tolerate: []unix.Errno{unix.ENOENT},
	}
}

func parse(m nlwire.Message) (f Flow, ok bool) {
	if m.Type>>8 != subsys || len(m.Body) < 4 {
		return f, false
	}
	nlwire.Attrs(m.Body[4:], func(typ uint16, v []byte) {
		switch typ {
		case ctaOrig:
			f.orig = v
			_, f.Dst, f.Proto, _, f.DstPort = tuple(v)
		case ctaReply:
			f.ReplySrc, _, _, f.ReplyPort, _ = tuple(v)
		case ctaID:
			f.id = v
		case ctaZone:
			f.zone = v
		}
	})
	return f, f.orig != nil && f.Dst.IsValid() && f.ReplySrc.IsValid()
}

func tuple(b []byte) (src, dst netip.Addr, proto byte, sport, dport uint16) {
	port := func(v []byte) uint16 {
		if len(v) < 2 {
			return 0
		}
		return binary.BigEndian.Uint16(v)
	}
	nlwire.Attrs(b, func(typ uint16, v []byte) {
		nlwire.Attrs(v, func(inner uint16, v []byte) {
			switch {
			case typ == tupleIP && (inner == ipSrc4 || inner == ipSrc6):
				src, _ = netip.AddrFromSlice(v)
			case typ == tupleIP && (inner == ipDst4 || inner == ipDst6):
				dst, _ = netip.AddrFromSlice(v)
			case typ == tupleProto && inner == protoNum && len(v) > 0:
				proto = v[0]
			case typ == tupleProto && inner == protoSrc:
				sport = port(v)
			case typ == tupleProto && inner == protoDst:
				dport = port(v)
			}
		})
	})
	return src, dst, proto, sport, dport
}
