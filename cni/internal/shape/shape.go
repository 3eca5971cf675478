// Package shape compiles the requests that limit a link's bandwidth (linux/pkt_sched.h): a token bucket on the host end
// for what the pod receives, and, because a qdisc only ever holds back what leaves, an ifb that what the pod sends
// is led through. It is pure; its requests go into a batch of rtnetlink.
package shape

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Numbers of linux/pkt_sched.h, pkt_cls.h and tc_act/tc_mirred.h that golang.org/x/sys lacks.
const (
	rootParent    = 0xffffffff
	clsact        = 0xfffffff1
	clsactIngress = 0xfffffff2
	clsactHandle  = 0xffff0000
	tcaKind       = 1
	tcaOptions    = 2
	tbfParms      = 1
	tbfRate64     = 4
	tbfBurst      = 6
	u32Sel        = 5
	u32Act        = 7
	actKind       = 1
	actOptions    = 2
	mirredParms   = 2
	terminal      = 1
	actStolen     = 4
	egressRedir   = 1
	linkEthernet  = 1
	create        = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
)

// latency is how long a packet may wait in the bucket's queue, as upstream has it: 25 ms.
const latency = 25 * 1e-3

// Limit is a rate in bytes per second and a burst in bytes.
type Limit struct {
	Rate  uint64
	Burst uint32
}

// noOpinion is the burst that runtimes send when the pod did not name one: with it a limit would begin after 256 MiB.
const noOpinion = math.MaxInt32

// NewLimit makes a limit of bits. A burst that nobody chose becomes 20 ms of the rate, at least ten packets.
func NewLimit(rate, burst uint64, mtu int) Limit {
	l := Limit{Rate: rate / 8, Burst: uint32(min(burst/8, math.MaxUint32))}
	if burst == noOpinion || burst == noOpinion/8*8 {
		l.Burst = uint32(min(max(l.Rate/50, uint64(10*max(mtu, 1500))), noOpinion/8))
	}
	return l
}

// queue is the bucket's queue in bytes.
func (l Limit) queue() uint32 {
	return uint32(min(float64(l.Rate)*latency+float64(l.Burst), math.MaxUint32))
}

func tcmsg(index int32, handle, parent, info uint32) []byte {
	b := binary.NativeEndian.AppendUint32(make([]byte, 4, 20), uint32(index))
	b = binary.NativeEndian.AppendUint32(b, handle)
	b = binary.NativeEndian.AppendUint32(b, parent)
	return binary.NativeEndian.AppendUint32(b, info)
}

// Bucket limits what leaves a link: one that is there is replaced.
func Bucket(index int32, l Limit) nlwire.Op {
	m := nlwire.New(unix.RTM_NEWQDISC, create&^unix.NLM_F_EXCL|unix.NLM_F_REPLACE, tcmsg(index, 1<<16, rootParent, 0)).Str(tcaKind, "tbf")
	m.Nest(tcaOptions, func(m *nlwire.Builder) {
		// struct tc_tbf_qopt: two tc_ratespec (rate and peak), limit, buffer, mtu. The burst attribute counts, not buffer.
		p := []byte{0, linkEthernet, 0, 0, 0, 0, 0, 0}
		p = binary.NativeEndian.AppendUint32(p, uint32(min(l.Rate, math.MaxUint32)))
		p = append(p, make([]byte, 12)...)
		p = binary.NativeEndian.AppendUint32(p, l.queue())
		p = append(p, make([]byte, 8)...)
		m.Bytes(tbfParms, p).U32(tbfBurst, l.Burst)
		if l.Rate > math.MaxUint32 {
			m.Bytes(tbfRate64, binary.NativeEndian.AppendUint64(nil, l.Rate))
		}
	})
	return nlwire.Op{What: fmt.Sprintf("limit link %d to %d bytes/s", index, l.Rate), Msg: m.Done()}
}

// AddIFB makes the link that what a pod sends is led through.
func AddIFB(name string, mtu int) nlwire.Op {
	fixed := make([]byte, 8, 16)
	fixed = binary.NativeEndian.AppendUint32(fixed, unix.IFF_UP)
	fixed = binary.NativeEndian.AppendUint32(fixed, unix.IFF_UP)
	m := nlwire.New(unix.RTM_NEWLINK, create, fixed).Str(unix.IFLA_IFNAME, name).U32(unix.IFLA_MTU, uint32(mtu)).
		U32(unix.IFLA_NUM_TX_QUEUES, 1).U32(unix.IFLA_NUM_RX_QUEUES, 1)
	m.Nest(unix.IFLA_LINKINFO, func(m *nlwire.Builder) { m.Bytes(unix.IFLA_INFO_KIND, []byte("ifb")) })
	return nlwire.Op{What: "create ifb " + name, Msg: m.Done()}
}

// Redirect leads everything that arrives at a link to another. It comes after the filters of package loguard.
func Redirect(from, to int32) []nlwire.Op {
	info := uint32(9)<<16 | uint32(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL}))
	m := nlwire.New(unix.RTM_NEWTFILTER, create, tcmsg(from, 0, clsactIngress, info)).Str(tcaKind, "u32")
	m.Nest(tcaOptions, func(m *nlwire.Builder) {
		sel := make([]byte, 16+16) // struct tc_u32_sel with one key whose mask is 0
		sel[0], sel[2] = terminal, 1
		m.Bytes(u32Sel, sel)
		m.Nest(u32Act, func(m *nlwire.Builder) {
			m.Nest(1, func(m *nlwire.Builder) {
				m.Str(actKind, "mirred")
				m.Nest(actOptions, func(m *nlwire.Builder) {
					var p []byte // struct tc_mirred
					for _, v := range []uint32{0, 0, actStolen, 0, 0, egressRedir, uint32(to)} {
						p = binary.NativeEndian.AppendUint32(p, v)
					}
					m.Bytes(mirredParms, p)
				})
			})
		})
	})
	return []nlwire.Op{
		{
			What: fmt.Sprintf("add qdisc clsact to link %d", from), Tolerate: []unix.Errno{unix.EEXIST},
			Msg: nlwire.New(unix.RTM_NEWQDISC, create, tcmsg(from, clsactHandle, clsact, 0)).Str(tcaKind, "clsact").Done(),
		},
		{What: fmt.Sprintf("lead link %d through link %d", from, to), Msg: m.Done()},
	}
}

// Dump asks for all qdiscs.
func Dump() []byte {
	return nlwire.New(unix.RTM_GETQDISC, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, tcmsg(0, 0, 0, 0)).Done()
}

// Parse reads a token bucket from an RTM_NEWQDISC message; ok is false for any other qdisc. The burst is not in it
// in bytes, so it is left 0; queue is the bucket's.
func Parse(m nlwire.Message) (index int32, rate uint64, queue uint32, ok bool) {
	if m.Type != unix.RTM_NEWQDISC || len(m.Body) < 20 {
		return 0, 0, 0, false
	}
	index = int32(nlwire.U32(m.Body[4:]))
	nlwire.Attrs(m.Body[20:], func(typ uint16, v []byte) {
		switch typ {
		case tcaKind:
			ok = nlwire.Str(v) == "tbf"
		case tcaOptions:
			nlwire.Attrs(v, func(typ uint16, v []byte) {
				switch {
				case typ == tbfParms && len(v) >= 28:
					rate, queue = max(rate, uint64(nlwire.U32(v[8:]))), nlwire.U32(v[24:])
				case typ == tbfRate64 && len(v) >= 8:
					rate = binary.NativeEndian.Uint64(v)
				}
			})
		}
	})
	return index, rate, queue, ok
}

// Matches says whether a bucket that was read is the limit's.
func (l Limit) Matches(rate uint64, queue uint32) bool { return rate == l.Rate && queue == l.queue() }
