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
	etherSrc      = 6
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

// macProgram drops frames whose source is another than mac.
func macProgram(mac [6]byte) []byte {
	var b []byte
	for _, i := range [][]byte{
		insn(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, etherSrc),
		insn(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 3, binary.BigEndian.Uint32(mac[:4])),
		insn(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, 0, 0, etherSrc+4),
		insn(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, uint32(binary.BigEndian.Uint16(mac[4:]))),
		insn(unix.BPF_RET|unix.BPF_K, 0, 0, tcNext),
		insn(unix.BPF_RET|unix.BPF_K, 0, 0, tcDrop),
	} {
		b = append(b, i...)
	}
	return b
}

// Ops returns the requests that put the program on the link of that index, for IPv4 packets. On a bridge, which many
// attachments share, it may be there already.
func Ops(index int32) []nlwire.Op {
	return filter(index, 1, unix.ETH_P_IP, program(), fmt.Sprintf("close 127/8 on link %d", index))
}

// OnlyMAC returns the requests that let nothing in at the link but frames from one hardware address.
func OnlyMAC(index int32, mac [6]byte) []nlwire.Op {
	return filter(index, 2, unix.ETH_P_ALL, macProgram(mac), fmt.Sprintf("close link %d to foreign MACs", index))
}

func filter(index int32, priority uint32, protocol uint16, code []byte, what string) []nlwire.Op {
	const flags = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	// tcm_info is priority and protocol, the latter in network order; the handle makes a second one fail.
	info := priority<<16 | uint32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol)))
	m := nlwire.New(unix.RTM_NEWTFILTER, flags, tcmsg(index, 1, clsactIngress, info)).Str(tcaKind, "bpf")
	m.Nest(tcaOptions, func(m *nlwire.Builder) {
		m.Bytes(bpfOpsLen, binary.NativeEndian.AppendUint16(nil, uint16(len(code)/8))).
			Bytes(bpfOps, code).U32(bpfFlags, actDirect)
	})
	there := []unix.Errno{unix.EEXIST}
	return []nlwire.Op{
		{
			What: fmt.Sprintf("add qdisc clsact to link %d", index), Tolerate: there,
			Msg: nlwire.New(unix.RTM_NEWQDISC, flags, tcmsg(index, clsactHandle, clsact, 0)).Str(tcaKind, "clsact").Done(),
		},
		{What: what, Msg: m.Done(), Tolerate: there},
	}
}
