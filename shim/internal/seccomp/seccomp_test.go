package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	nr   uint32
	arch uint32
	ip   uint64
	args [6]uint64
}

// run interprets a filter, as the kernel does.
func run(t *testing.T, code []byte, d *data) uint32 {
	t.Helper()
	mem := binary.LittleEndian.AppendUint32(nil, d.nr)
	mem = binary.LittleEndian.AppendUint32(mem, d.arch)
	mem = binary.LittleEndian.AppendUint64(mem, d.ip)
	for _, a := range d.args {
		mem = binary.LittleEndian.AppendUint64(mem, a)
	}
	var acc uint32
	for pc := 0; pc < len(code)/8; pc++ {
		in := code[pc*8:]
		op, jt, jf, k := binary.LittleEndian.Uint16(in), int(in[2]), int(in[3]), binary.LittleEndian.Uint32(in[4:])
		cond := false
		switch op {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.LittleEndian.Uint32(mem[k:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return k
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= k
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			cond = acc == k
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			cond = acc > k
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			cond = acc >= k
		default:
			t.Fatalf("instruction %d has operation %#x", pc, op)
		}
		if cond {
			pc += jt
		} else {
			pc += jf
		}
	}
	t.Fatal("the program runs off its end")
	return 0
}

func table(t *testing.T, names string) map[string]uint32 {
	t.Helper()
	m := map[string]uint32{}
	for line := range strings.Lines(names) {
		name, nr, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(nr)
		if err != nil {
			t.Fatal(err)
		}
		m[name] = uint32(n)
	}
	return m
}

// reference evaluates a profile directly, in the words of the runtime spec and runc.
func reference(t *testing.T, p *specs.LinuxSeccomp, names map[string]uint32, d *data) uint32 {
	t.Helper()
	def, err := actionOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	highest := uint32(0)
	matched, unconditional := uint32(0), uint32(0)
	haveMatch, haveUncond := false, false
	for _, s := range p.Syscalls {
		act, err := actionOf(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		alternatives, err := conditions(&s)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range s.Names {
			nr, ok := names[n]
			if !ok {
				continue
			}
			highest = max(highest, nr)
			if nr != d.nr {
				continue
			}
			for _, conds := range alternatives {
				if len(conds) == 0 && !haveUncond {
					haveUncond, unconditional = true, act
				}
				if !haveMatch && holds(conds, d) {
					haveMatch, matched = true, act
				}
			}
		}
	}
	switch {
	case haveUncond:
		return unconditional
	case haveMatch:
		return matched
	case d.nr > highest && highest > 0 && def != unix.SECCOMP_RET_ALLOW && def != unix.SECCOMP_RET_LOG:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return def
}

func holds(conds []specs.LinuxSeccompArg, d *data) bool {
	for _, c := range conds {
		v := d.args[c.Index]
		ok := false
		switch c.Op {
		case specs.OpEqualTo:
			ok = v == c.Value
		case specs.OpNotEqual:
			ok = v != c.Value
		case specs.OpLessThan:
			ok = v < c.Value
		case specs.OpLessEqual:
			ok = v <= c.Value
		case specs.OpGreaterThan:
			ok = v > c.Value
		case specs.OpGreaterEqual:
			ok = v >= c.Value
		case specs.OpMaskedEqual:
			ok = v&c.Value == c.ValueTwo
		}
		if !ok {
			return false
		}
	}
	return true
}

// randomProfile makes a profile of many rules, with and without conditions.
func randomProfile(r *rand.Rand, names map[string]uint32, arches ...specs.Arch) *specs.LinuxSeccomp {
	ops := []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual,
	}
	acts := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace, specs.ActKillThread}
	def := []specs.LinuxSeccompAction{specs.ActErrno, specs.ActAllow, specs.ActLog, specs.ActKillProcess}
	all := make([]string, 0, len(names))
	for n := range names {
		all = append(all, n)
	}
	p := &specs.LinuxSeccomp{DefaultAction: def[r.IntN(len(def))], Architectures: arches}
	for range r.IntN(60) + 1 {
		s := specs.LinuxSyscall{Action: acts[r.IntN(len(acts))]}
		for range r.IntN(12) + 1 {
			s.Names = append(s.Names, all[r.IntN(len(all))])
		}
		s.Names = append(s.Names, "no_such_call")
		if r.IntN(3) == 0 {
			for range r.IntN(3) + 1 {
				s.Args = append(s.Args, specs.LinuxSeccompArg{
					Index: uint(r.IntN(6)), Op: ops[r.IntN(len(ops))], Value: randomValue(r), ValueTwo: randomValue(r),
				})
			}
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func randomValue(r *rand.Rand) uint64 {
	return []uint64{0, 1, 0xff, 1 << 31, 1 << 32, 1<<32 + 1, 1<<63 + 5, ^uint64(0), r.Uint64()}[r.IntN(9)]
}

func TestFilterMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, m := range []struct {
		goarch  string
		audit   uint32
		names   string
		foreign uint32
		arches  []specs.Arch
	}{
		{"amd64", unix.AUDIT_ARCH_X86_64, namesAmd64, 0, []specs.Arch{specs.ArchX86_64}},
		{"amd64", unix.AUDIT_ARCH_I386, names386, 0, []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}},
		{"arm64", unix.AUDIT_ARCH_AARCH64, namesArm64, 0, nil},
		{"arm64", unix.AUDIT_ARCH_ARM, namesArm, 0, []specs.Arch{specs.ArchAARCH64, specs.ArchARM}},
	} {
		names := table(t, m.names)
		for range 40 {
			p := randomProfile(r, names, m.arches...)
			got, err := Compile(p, m.goarch)
			if err != nil {
				t.Fatal(err)
			}
			for nr := range uint32(520) {
				d := &data{nr: nr, arch: m.audit}
				for i := range d.args {
					d.args[i] = randomValue(r)
				}
				if have, want := run(t, got.Code, d), reference(t, p, names, d); have != want {
					b, _ := json.Marshal(p)
					t.Fatalf("%s call %d args %#x: %#x, want %#x\n%s", m.goarch, nr, d.args, have, want, b)
				}
			}
			if have := run(t, got.Code, &data{arch: 12345}); have != unix.SECCOMP_RET_KILL_PROCESS {
				t.Fatalf("unknown architecture: %#x", have)
			}
		}
	}
}

func TestX32(t *testing.T) {
	p := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "close"}, Action: specs.ActAllow}},
	}
	call := &data{nr: x32Bit, arch: unix.AUDIT_ARCH_X86_64} // read is number 0
	f, err := Compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, f.Code, call); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("x32 read, not listed: %#x", got)
	}
	p.Architectures = append(p.Architectures, specs.ArchX32)
	if f, err = Compile(p, "amd64"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, f.Code, call); got != unix.SECCOMP_RET_ALLOW {
		t.Errorf("x32 read, listed: %#x", got)
	}
	call.nr = x32Bit | 1
	if got := run(t, f.Code, call); got != unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM) {
		t.Errorf("x32 write, listed: %#x", got)
	}
}

func TestRefusals(t *testing.T) {
	big := uint(5000)
	for name, p := range map[string]*specs.LinuxSeccomp{
		"notify":   {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActNotify}}},
		"listener": {DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		"action":   {DefaultAction: "SCMP_ACT_NOTHING"},
		"empty":    {},
		"errno":    {DefaultAction: specs.ActErrno, DefaultErrnoRet: &big},
		"index":    {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		"operator": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "x"}}}}},
		"flag":     {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_X"}},
	} {
		if _, err := Compile(p, "amd64"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestTableIsCurrent checks the generated table against a few calls whose numbers never change.
func TestTableIsCurrent(t *testing.T) {
	amd, arm := table(t, namesAmd64), table(t, namesArm64)
	for name, want := range map[string][2]uint32{
		"read": {0, 63}, "openat2": {437, 437}, "clone3": {435, 435}, "newfstatat": {262, 79}, "io_uring_setup": {425, 425}, "mseal": {462, 462},
	} {
		if amd[name] != want[0] || arm[name] != want[1] {
			t.Errorf("%s is %d and %d, want %v", name, amd[name], arm[name], want)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}}
	for line := range strings.Lines(namesAmd64) {
		name, _, _ := strings.Cut(line, " ")
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow})
	}
	for b.Loop() {
		if _, err := Compile(p, "amd64"); err != nil {
			b.Fatal(err)
		}
	}
}
