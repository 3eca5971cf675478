package cgroup

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// SetDevices makes rules the device access of a group; everything they do not allow is denied. On v1 they are
// written to devices.deny and devices.allow, on v2 an eBPF program of type CGROUP_DEVICE (Linux 4.15) is
// attached. Rules are read as runtime-spec says: later ones win.
func (l *Layout) SetDevices(path string, rules []specs.LinuxDeviceCgroup) error {
	if l.V2 {
		return attachDevices(l.Unified+path, compileDevices(rules))
	}
	dir := l.V1["devices"]
	if dir == "" {
		return nil
	}
	deny, err := open(dir+path+"/devices.deny", unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	defer unix.Close(deny) //nolint:errcheck // every write said how it went
	allow, err := open(dir+path+"/devices.allow", unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	defer unix.Close(allow) //nolint:errcheck // as above
	if err := put(deny, "a"); err != nil {
		return fmt.Errorf("cgroup %s: devices.deny: %w", path, err)
	}
	for _, r := range rules {
		to, name := deny, "devices.deny"
		if r.Allow {
			to, name = allow, "devices.allow"
		}
		if err := put(to, ruleV1(r)); err != nil {
			return fmt.Errorf("cgroup %s: %s: %w", path, name, err)
		}
	}
	return nil
}

func ruleV1(r specs.LinuxDeviceCgroup) string {
	if r.Type == "" || r.Type == "a" {
		return "a"
	}
	num := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return fmt.Sprint(*n)
	}
	return fmt.Sprintf("%s %s:%s %s", r.Type, num(r.Major), num(r.Minor), r.Access)
}

// insn is one eBPF instruction (linux/bpf.h, struct bpf_insn).
type insn struct {
	op  uint8
	reg uint8 // destination in the low half, source in the high one
	off int16
	imm int32
}

const ( // linux/bpf_common.h, linux/bpf.h
	opLoad32  = 0x61 // dst = *(u32 *)(src + off)
	opAndImm  = 0x54 // 32 bit
	opRshImm  = 0x74
	opMovReg  = 0xbc
	opMovImm  = 0xb7
	opJneImm  = 0x55
	opJneReg  = 0x5d
	opExit    = 0x95
	devBlock  = 1
	devChar   = 2
	accMknod  = 1
	accRead   = 2
	accWrite  = 4
	regType   = 2
	regAccess = 3
	regMajor  = 4
	regMinor  = 5
	regTmp    = 6
)

// compileDevices is the program for rules: from the last to the first, the first one that matches decides;
// without a match access is denied. The context is struct bpf_cgroup_dev_ctx {access<<16|type, major, minor}.
func compileDevices(rules []specs.LinuxDeviceCgroup) []insn {
	prog := []insn{
		{op: opLoad32, reg: regType | 1<<4, off: 0},
		{op: opMovReg, reg: regAccess | regType<<4},
		{op: opAndImm, reg: regType, imm: 0xffff},
		{op: opRshImm, reg: regAccess, imm: 16},
		{op: opLoad32, reg: regMajor | 1<<4, off: 4},
		{op: opLoad32, reg: regMinor | 1<<4, off: 8},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		code, always := compileDevice(rules[i])
		prog = append(prog, code...)
		if always { // what follows could never run, which the verifier refuses
			return prog
		}
	}
	return append(prog, insn{op: opMovImm, reg: 0, imm: 0}, insn{op: opExit})
}

// compileDevice is the code of one rule; always says that it matches every access.
func compileDevice(r specs.LinuxDeviceCgroup) (code []insn, always bool) {
	var skips []int
	unless := func(in insn) {
		skips = append(skips, len(code))
		code = append(code, in)
	}
	switch r.Type {
	case "b":
		unless(insn{op: opJneImm, reg: regType, imm: devBlock})
	case "c", "u":
		unless(insn{op: opJneImm, reg: regType, imm: devChar})
	}
	if mask := accessMask(r.Access); r.Type != "" && r.Type != "a" && mask != accMknod|accRead|accWrite {
		code = append(code, insn{op: opMovReg, reg: regTmp | regAccess<<4}, insn{op: opAndImm, reg: regTmp, imm: mask})
		unless(insn{op: opJneReg, reg: regTmp | regAccess<<4})
	}
	if r.Major != nil && *r.Major >= 0 {
		unless(insn{op: opJneImm, reg: regMajor, imm: int32(*r.Major)}) //nolint:gosec // 12 bits
	}
	if r.Minor != nil && *r.Minor >= 0 {
		unless(insn{op: opJneImm, reg: regMinor, imm: int32(*r.Minor)}) //nolint:gosec // 20 bits
	}
	verdict := int32(0)
	if r.Allow {
		verdict = 1
	}
	code = append(code, insn{op: opMovImm, reg: 0, imm: verdict}, insn{op: opExit})
	for _, at := range skips {
		code[at].off = int16(len(code) - at - 1) //nolint:gosec // a rule is a dozen instructions
	}
	return code, len(skips) == 0
}

func accessMask(s string) int32 {
	var m int32
	if strings.Contains(s, "m") {
		m |= accMknod
	}
	if strings.Contains(s, "r") {
		m |= accRead
	}
	if strings.Contains(s, "w") {
		m |= accWrite
	}
	return m
}

type progLoad struct { // bpf_attr of BPF_PROG_LOAD, its first fields
	progType, insnCnt uint32
	insns, license    uint64
	logLevel, logSize uint32
	logBuf            uint64
	kernVersion       uint32
	progFlags         uint32
}

type progAttach struct { // bpf_attr of BPF_PROG_ATTACH
	targetFd, attachFd, attachType, flags, replaceFd uint32
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

// attachDevices loads a program and attaches it to the group at dir; the group holds it from then on.
func attachDevices(dir string, prog []insn) error {
	license := []byte("Apache-2.0\x00")
	load := progLoad{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE, insnCnt: uint32(len(prog)), //nolint:gosec // small
		insns: uint64(uintptr(unsafe.Pointer(&prog[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return fmt.Errorf("device program of %s: load: %w", dir, err)
	}
	defer unix.Close(fd) //nolint:errcheck // the group holds the program
	group, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer group.Close() //nolint:errcheck // read only
	at := progAttach{
		targetFd: uint32(group.Fd()), attachFd: uint32(fd), //nolint:gosec // descriptors
		attachType: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI,
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&at), unsafe.Sizeof(at)); err != nil {
		return fmt.Errorf("device program of %s: attach: %w", dir, err)
	}
	return nil
}
