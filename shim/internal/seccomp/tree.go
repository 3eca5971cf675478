package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tree emits a binary search over segments, with the system call number in the accumulator.
func tree(a *assembler, list []segment) label {
	if len(list) == 1 {
		return leaf(a, &list[0])
	}
	mid := len(list) / 2
	right := tree(a, list[mid:])
	left := tree(a, list[:mid])
	return a.jump(unix.BPF_JGE, list[mid].start, right, left)
}

// leaf emits what one segment does: its rules in order, then its fallback.
func leaf(a *assembler, s *segment) label {
	next := a.ret(s.other)
	for _, r := range slices.Backward(s.rules) {
		yes := a.ret(r.action)
		for _, c := range slices.Backward(r.conds) {
			yes = condition(a, &c, yes, next)
		}
		next = yes
	}
	return next
}

// condition emits one 64-bit comparison of an argument, from its two halves.
func condition(a *assembler, c *specs.LinuxSeccompArg, yes, no label) label {
	lowOff := offArgs + 8*uint32(c.Index) //nolint:gosec // at most 5
	highOff := lowOff + 4
	value := c.Value
	if c.Op == specs.OpMaskedEqual { // Value is the mask, ValueTwo what must remain
		value = c.ValueTwo
	}
	low, high := uint32(value), uint32(value>>32) //nolint:gosec // halves
	switch c.Op {
	case specs.OpEqualTo, specs.OpNotEqual:
		if c.Op == specs.OpNotEqual {
			yes, no = no, yes
		}
		a.jump(unix.BPF_JEQ, low, yes, no)
		l := a.load(lowOff)
		a.jump(unix.BPF_JEQ, high, l, no)
		return a.load(highOff)
	case specs.OpMaskedEqual:
		a.jump(unix.BPF_JEQ, low, yes, no)
		a.and(uint32(c.Value)) //nolint:gosec // a half
		l := a.load(lowOff)
		a.jump(unix.BPF_JEQ, high, l, no)
		a.and(uint32(c.Value >> 32))
		return a.load(highOff)
	case specs.OpLessThan, specs.OpLessEqual:
		yes, no = no, yes
	default:
	}
	// now: greater, or greater or equal
	op := uint16(unix.BPF_JGE)
	if c.Op == specs.OpGreaterThan || c.Op == specs.OpLessEqual {
		op = unix.BPF_JGT
	}
	a.jump(op, low, yes, no)
	l := a.load(lowOff)
	equal := a.jump(unix.BPF_JEQ, high, l, no)
	a.jump(unix.BPF_JGT, high, yes, equal)
	return a.load(highOff)
}
