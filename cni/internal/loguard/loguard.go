// Package loguard closes 127/8 to what comes in over one link, with a program of nine instructions at the link's
// ingress (tcx, Linux 6.6). It stays as long as the link, whatever happens to nftables. The package needs no BPF
// library: the program never changes.
package loguard

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	progLoad    = 5
	progAttach  = 8
	schedCls    = 3
	tcxIngress  = 46
	tcxNext     = -1
	tcxDrop     = 2
	skbProtocol = 16 // offset of __sk_buff.protocol
	ipv4Dst     = 14 + 16
	loopbackNet = 127
)

func insn(code, regs byte, off int16, imm int32) []byte {
	b := []byte{code, regs}
	b = binary.NativeEndian.AppendUint16(b, uint16(off))
	return binary.NativeEndian.AppendUint32(b, uint32(imm))
}

// program drops IPv4 packets whose destination begins with 127 and leaves all others to whatever comes next.
func program() []byte {
	ipv4 := int32(binary.NativeEndian.Uint16([]byte{0x08, 0x00})) // ETH_P_IP in network order
	var b []byte
	for _, i := range [][]byte{
		insn(0xbf, 0x16, 0, 0),           // r6 = r1 (LD_ABS wants the packet there)
		insn(0x61, 0x62, skbProtocol, 0), // r2 = skb->protocol
		insn(0x55, 0x02, 4, ipv4),        // if r2 != IPv4 goto next
		insn(0x30, 0x00, 0, ipv4Dst),     // r0 = first byte of the destination
		insn(0x55, 0x00, 2, loopbackNet), // if r0 != 127 goto next
		insn(0xb7, 0x00, 0, tcxDrop),     // r0 = drop
		insn(0x95, 0x00, 0, 0),           // return
		insn(0xb7, 0x00, 0, tcxNext),     // next: r0 = next
		insn(0x95, 0x00, 0, 0),           // return
	} {
		b = append(b, i...)
	}
	return b
}

// loadAttr and attachAttr are the parts of union bpf_attr that are used.
type loadAttr struct {
	progType, insnCount uint32
	insns, license      uint64
	logLevel, logSize   uint32
	logBuf              uint64
	kernVersion, flags  uint32
}

type attachAttr struct {
	ifindex, progFD, attachType, flags, replaceFD, relative uint32
	revision                                                uint64
}

// Attach puts the program on the link of that index in the calling thread's namespace.
func Attach(index int32) error {
	code, license := program(), []byte("Apache-2.0\x00")
	load := loadAttr{progType: schedCls, insnCount: uint32(len(code) / 8),
		insns: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, progLoad, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return fmt.Errorf("load the 127/8 guard: %w", os.NewSyscallError("bpf", errno))
	}
	defer unix.Close(int(fd)) //nolint:errcheck // the link holds the program
	attach := attachAttr{ifindex: uint32(index), progFD: uint32(fd), attachType: tcxIngress}
	if _, _, errno = unix.Syscall(unix.SYS_BPF, progAttach, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fmt.Errorf("attach the 127/8 guard (tcx, Linux 6.6): %w", os.NewSyscallError("bpf", errno))
	}
	return nil
}
