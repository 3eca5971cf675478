// Package seccomp compiles a runtime-spec linux.seccomp profile to classic BPF.
//
// The meaning is libseccomp's as runc uses it: rules of one system call are alternatives, the conditions of one
// rule must all hold, an unconditional rule rules alone, and a system call newer than all the profile names gives
// ENOSYS, so that libc can fall back, where the default would be an error. The shape is not: one binary search
// over the system call numbers of each architecture instead of a list.
//
// The package is pure.
package seccomp

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

//go:generate go run ./gen

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// x32Bit marks a system call of the x32 ABI, which shares its audit architecture with x86-64.
const x32Bit = 0x40000000

// Profile is a compiled profile.
type Profile struct {
	Code  []byte // struct sock_filter[]
	Flags uint   // SECCOMP_FILTER_FLAG_*
}

// arch is an architecture a filter is made for.
type arch struct {
	audit uint32
	names string
	x86   bool // x86-64, with x32 beside it
}

// archOf gives the table of an architecture this machine (goarch) can run.
func archOf(a specs.Arch, goarch string) (arch, bool) {
	switch {
	case a == specs.ArchX86_64 && goarch == "amd64":
		return arch{unix.AUDIT_ARCH_X86_64, namesAmd64, true}, true
	case a == specs.ArchX86 && goarch == "amd64":
		return arch{unix.AUDIT_ARCH_I386, names386, false}, true
	case a == specs.ArchAARCH64 && goarch == "arm64":
		return arch{unix.AUDIT_ARCH_AARCH64, namesArm64, false}, true
	case a == specs.ArchARM && goarch == "arm64":
		return arch{unix.AUDIT_ARCH_ARM, namesArm, false}, true
	}
	return arch{}, false
}

// Compile translates a profile for a machine of the Go architecture goarch (amd64 or arm64).
func Compile(p *specs.LinuxSeccomp, goarch string) (*Profile, error) {
	flags, err := parseFlags(p)
	if err != nil {
		return nil, err
	}
	def, err := actionOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	native := specs.ArchX86_64
	if goarch == "arm64" {
		native = specs.ArchAARCH64
	}
	arches := []specs.Arch{native}
	for _, a := range p.Architectures {
		if a != native {
			arches = append(arches, a)
		}
	}
	x32 := slices.Contains(p.Architectures, specs.ArchX32)
	var a assembler
	entry := a.ret(unix.SECCOMP_RET_KILL_PROCESS) // an architecture the profile does not list
	for _, name := range slices.Backward(arches) {
		t, ok := archOf(name, goarch)
		if !ok {
			continue
		}
		block, err := compileArch(&a, p, def, t, x32)
		if err != nil {
			return nil, err
		}
		entry = a.jump(unix.BPF_JEQ, t.audit, block, entry)
	}
	a.load(offArch)
	code, err := a.bytes()
	if err != nil {
		return nil, err
	}
	return &Profile{Code: code, Flags: flags}, nil
}

func parseFlags(p *specs.LinuxSeccomp) (uint, error) {
	if p.ListenerPath != "" {
		return 0, errs.Unimplemented.Errorf("seccomp notification listeners are not supported")
	}
	var flags uint
	for _, f := range p.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is one thread
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, errs.Unimplemented.Errorf("seccomp flag %s is not supported", f)
		}
	}
	return flags, nil
}

func actionOf(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	code := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 4095 {
			return 0, errs.InvalidArgument.Errorf("seccomp errno %d is above 4095", *errno)
		}
		code = uint32(*errno) //nolint:gosec // bounded above
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | code, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | code, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return 0, errs.Unimplemented.Errorf("seccomp action SCMP_ACT_NOTIFY is not supported")
	}
	return 0, errs.InvalidArgument.Errorf("unknown seccomp action %q", a)
}

// rule is what one system call number gets.
type rule struct {
	conds  []specs.LinuxSeccompArg // all must hold; none: always
	action uint32
}

// rulesOf sorts the profile's rules by system call number.
func rulesOf(p *specs.LinuxSeccomp, names string) (map[uint32][]rule, error) {
	numbers := map[string]uint32{}
	for line := range strings.Lines(names) {
		name, nr, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(nr, 10, 32)
		if err != nil {
			return nil, err
		}
		numbers[name] = uint32(n)
	}
	rules := map[uint32][]rule{}
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		action, err := actionOf(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		alternatives, err := conditions(s)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			nr, ok := numbers[name]
			if !ok {
				continue // not of this architecture, or newer than the table: the default or ENOSYS
			}
			for _, conds := range alternatives {
				rules[nr] = append(rules[nr], rule{conds, action})
			}
		}
	}
	for nr, list := range rules {
		for _, r := range list {
			if len(r.conds) == 0 {
				rules[nr] = []rule{r}
				break
			}
		}
	}
	return rules, nil
}

// conditions lists the alternatives of a rule. As in runc, two conditions on the same argument make every
// condition an alternative of its own.
func conditions(s *specs.LinuxSyscall) ([][]specs.LinuxSeccompArg, error) {
	var seen [6]int
	repeated := false
	for _, c := range s.Args {
		if c.Index > 5 {
			return nil, errs.InvalidArgument.Errorf("seccomp rule for %v: argument %d", s.Names, c.Index)
		}
		switch c.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpLessEqual, specs.OpLessThan, specs.OpMaskedEqual:
		default:
			return nil, errs.InvalidArgument.Errorf("seccomp rule for %v: unknown operator %q", s.Names, c.Op)
		}
		seen[c.Index]++
		repeated = repeated || seen[c.Index] > 1
	}
	if !repeated {
		return [][]specs.LinuxSeccompArg{s.Args}, nil
	}
	var all [][]specs.LinuxSeccompArg
	for _, c := range s.Args {
		all = append(all, []specs.LinuxSeccompArg{c})
	}
	return all, nil
}

// segment is a run of system call numbers, from start to the next segment's, that are treated alike.
type segment struct {
	start uint32
	rules []rule // nil: fallback
	other uint32 // the action if no rule matches
}

// segments covers all numbers. Those above the highest the profile names give ENOSYS where the default is an
// error (runc: libcontainer/seccomp/patchbpf).
func segments(rules map[uint32][]rule, def uint32) []segment {
	nrs := make([]uint32, 0, len(rules))
	for nr := range rules {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	list := []segment{{start: 0, other: def}}
	add := func(s segment) {
		if last := &list[len(list)-1]; last.start == s.start {
			list = list[:len(list)-1]
		}
		if n := len(list); n > 0 && len(list[n-1].rules) == 0 && len(s.rules) == 0 && list[n-1].other == s.other {
			return
		}
		list = append(list, s)
	}
	newer := def
	if def != unix.SECCOMP_RET_ALLOW && def != unix.SECCOMP_RET_LOG {
		newer = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	for i, nr := range nrs {
		s := segment{start: nr, rules: rules[nr], other: def}
		if len(s.rules) == 1 && len(s.rules[0].conds) == 0 {
			s = segment{start: nr, other: s.rules[0].action}
		}
		add(s)
		if i+1 < len(nrs) && nrs[i+1] == nr+1 {
			continue
		}
		after := def
		if i+1 == len(nrs) {
			after = newer
		}
		add(segment{start: nr + 1, other: after})
	}
	return list
}

// compileArch emits the block of one architecture.
func compileArch(a *assembler, p *specs.LinuxSeccomp, def uint32, t arch, x32 bool) (label, error) {
	rules, err := rulesOf(p, t.names)
	if err != nil {
		return 0, err
	}
	root := tree(a, segments(rules, def))
	if !t.x86 {
		return a.load(offNr), nil
	}
	// An x32 call has its bit set. Where the profile lists x32 it gets the rules of the 64-bit call of that
	// number (the tables are the same below 512); else it is an architecture that is not listed.
	foreign := label(0)
	if x32 {
		a.emit(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(a.code) - int(root))}) //nolint:gosec // below 4096
		foreign = a.and(^uint32(x32Bit))
	} else {
		foreign = a.ret(unix.SECCOMP_RET_KILL_PROCESS)
	}
	a.jump(unix.BPF_JGE, x32Bit, foreign, root)
	return a.load(offNr), nil
}

// CompileJSON is Compile of the JSON of a profile.
func CompileJSON(profile []byte, goarch string) (*Profile, error) {
	p := &specs.LinuxSeccomp{}
	if err := json.Unmarshal(profile, p); err != nil {
		return nil, errs.InvalidArgument.Errorf("seccomp profile: %w", err)
	}
	return Compile(p, goarch)
}
