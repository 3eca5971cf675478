// Package loguard closes 127/8 to what comes in over one link, with a classic BPF program of four instructions at
// the link's ingress (clsact and cls_bpf, Linux 4.5). It stays as long as the link, whatever happens to nftables.
//
// The same program attached by tcx cost 8 ms on ADD and as much on DEL: tcx waits for RCU whenever it changes,
// a new clsact does not. The package is pure; its requests go into a batch.
package loguard

import (
	"encoding/binary"
	"fmt"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Numbers of linux/pkt_sched.h and linux/pkt_cls.h that golang.org/x/sys lacks.
const (
	clsact        = 0xfffffff1
	clsactIngress = 0xfffffff2
	clsactHandle  = 0xffff0000
	tcaKind       = 1
	tcaOptions    = 2
	bpfOpsLen     = 4
	bpfOps        = 5
	bpfFlags      = 8
	actDirect     = 1
	tcDrop        = 2
	tcNext        = 0xffffffff
	ipv4Dst       = 14 + 16
	loopbackNet   = 127
)

func tcmsg(index int32, handle, parent, info uint32) []byte {
	b := binary.NativeEndian.AppendUint32(make([]byte, 4, 20), uint32(index))
	b = binary.NativeEndian.AppendUint32(b, handle)
	b = binary.NativeEndian.AppendUint32(b, parent)
	return binary.NativeEndian.AppendUint32(b, info)
}

func insn(code uint16, jt, jf byte, k uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, code)
	return binary.NativeEndian.AppendUint32(append(b, jt, jf), k)
}

// program drops packets whose IPv4 destination begins with 127 and leaves all others to whatever comes next.
func program() []byte {
	var b []byte
	for _, i := range [][]byte{
		insn(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0, 0, ipv4Dst),
		insn(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, loopbackNet),
		insn(unix.BPF_RET|unix.BPF_K, 0, 0, tcDrop),
		insn(unix.BPF_RET|unix.BPF_K, 0, 0, tcNext),
	} {
		b = append(b, i...)
	}
	return b
}

// Ops returns the requests that put the program on the link of that index, for IPv4 packets.
func Ops(index int32) []nlwire.Op {
	const flags = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	// tcm_info is priority and protocol, the latter in network order.
	info := uint32(1)<<16 | uint32(binary.NativeEndian.Uint16([]byte{0x08, 0x00}))
	code := program()
	filter := nlwire.New(unix.RTM_NEWTFILTER, flags, tcmsg(index, 0, clsactIngress, info)).Str(tcaKind, "bpf")
	filter.Nest(tcaOptions, func(m *nlwire.Builder) {
		m.Bytes(bpfOpsLen, binary.NativeEndian.AppendUint16(nil, uint16(len(code)/8))).
			Bytes(bpfOps, code).U32(bpfFlags, actDirect)
	})
	return []nlwire.Op{
		{
			What: fmt.Sprintf("add qdisc clsact to link %d", index),
			Msg:  nlwire.New(unix.RTM_NEWQDISC, flags, tcmsg(index, clsactHandle, clsact, 0)).Str(tcaKind, "clsact").Done(),
		},
		{What: fmt.Sprintf("close 127/8 on link %d", index), Msg: filter.Done()},
	}
}
