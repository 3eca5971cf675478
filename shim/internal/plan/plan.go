// Package plan describes what a new process does between its birth and its execve(2): a flat list of system
// calls, as data. Package executor compiles an OCI spec into a plan, package launch runs it in a raw clone3 child.
//
// A plan has no loops and no branches but one: a step that succeeds may skip the few that follow it. A step may
// save its result (a descriptor, usually) in a slot which later steps use as an argument. That is enough for
// everything a container needs, and little enough to be printed, compared with a golden file, and executed by a
// loop that allocates nothing.
//
// The package is pure: it makes no system call itself. It imports the standard library and golang.org/x/sys.
package plan

import (
	"fmt"
	"strings"
	"syscall"
)

// Slot is a place for the result of a step. Slot 0 is none.
type Slot int

// Console is the slot whose descriptor is sent to the parent: the master of the process's terminal.
const Console Slot = 1

// MaxSlots bounds the slots of one plan; the shared page they live in has room for no more.
const MaxSlots = 384

// Kind tells what an argument is.
type Kind uint8

// The kinds of arguments.
const (
	Imm    Kind = iota // N as it is
	Fd                 // N is a descriptor of the parent, which survives in the child because the plan names it
	Res                // the result saved in slot N
	Str                // pointer to S and a NUL
	Bytes              // pointer to the bytes of S, which the kernel may write to
	Vec                // pointer to a NULL-terminated array of pointers to the strings of V
	Filter             // pointer to a struct sock_fprog of the BPF instructions in S
	Own                // the read end of the pipe by which the parent lets the child go on
)

// Arg is one argument of a system call.
type Arg struct {
	Kind Kind
	N    uint64
	S    string
	V    *[]string // rare, and a plan has a thousand arguments
}

// Pseudo system call numbers, handled by the runner itself.
const (
	// NrClone makes a further child with CLONE_PARENT and the flags in argument 0; the maker exits with 0 and
	// the child goes on with the plan. It is how a new pid namespace comes to be inside a user namespace that
	// was joined.
	NrClone uintptr = 1<<20 + iota
	// NrExit ends the process with the status in argument 0.
	NrExit
	// NrSendConsole sends the descriptor in slot Console to the parent.
	NrSendConsole
	// NrNop succeeds; with Skip it is a jump.
	NrNop
	// NrFail ends the plan as failed with the errno in argument 0.
	NrFail
)

// Step is one system call and what to do with its result.
type Step struct {
	Nr   uintptr
	Args []Arg
	// What is the step in words, for the error that names it: "mount proc on /proc".
	What string
	// Save receives the result.
	Save Slot
	// Skip is how many of the following steps are left out after success.
	Skip int
	// Pass are the errnos that are not failures: the plan goes on silently.
	Pass []syscall.Errno
	// Note are the errnos after which the plan goes on too, but which the parent is told of.
	Note []syscall.Errno
	// Want is the result a success must have, if Check is set; another one is a failure with EPROTO.
	Want  int64
	Check bool
}

// Plan is a list of steps under construction.
type Plan struct {
	Steps []Step
	slots Slot
}

// New makes an empty plan with room for as many steps as it usually takes.
func New(room int) *Plan { return &Plan{slots: Console, Steps: make([]Step, 0, room)} }

// Slot reserves a new slot.
func (p *Plan) Slot() Slot {
	p.slots++
	return p.slots
}

// Slots is the highest slot in use.
func (p *Plan) Slots() Slot { return p.slots }

// Add appends steps.
func (p *Plan) Add(steps ...Step) { p.Steps = append(p.Steps, steps...) }

// Open appends a step that makes a descriptor and returns the slot it is saved in.
func (p *Plan) Open(s Step) Slot {
	if s.Save == 0 {
		s.Save = p.Slot()
	}
	p.Add(s)
	return s.Save
}

// Unless appends s and the steps of alternative, which run only if s failed with one of the errnos that s passes
// or notes. A slot that s saves is meant to be saved by the alternative too.
func (p *Plan) Unless(s Step, alternative ...Step) {
	s.Skip = len(alternative)
	p.Add(s)
	p.Add(alternative...)
}

// If appends s and the steps of then, which run only if s succeeded.
func (p *Plan) If(s Step, then ...Step) {
	s.Skip = 1
	p.Add(s)
	p.Jump(len(then))
	p.Add(then...)
}

// Jump appends a step that leaves out the next n.
func (p *Plan) Jump(n int) { p.Add(Step{Nr: NrNop, Skip: n, What: "skip"}) }

// String renders the plan, one step a line, with descriptors by the name given to them, so that it can be
// compared with a golden file.
func (p *Plan) String() string {
	var b strings.Builder
	for i := range p.Steps {
		b.WriteString(p.Steps[i].String())
		b.WriteByte('\n')
	}
	return b.String()
}

// String renders one step.
func (s *Step) String() string {
	args := make([]string, len(s.Args))
	for i, a := range s.Args {
		args[i] = a.String()
	}
	line := fmt.Sprintf("%s(%s)", name(s.Nr), strings.Join(args, ", "))
	if s.Save != 0 {
		line = fmt.Sprintf("s%d = %s", s.Save, line)
	}
	if len(s.Pass) > 0 {
		line += " pass " + errnos(s.Pass)
	}
	if len(s.Note) > 0 {
		line += " note " + errnos(s.Note)
	}
	if s.Check {
		line += fmt.Sprintf(" want %d", s.Want)
	}
	if s.Skip > 0 {
		line += fmt.Sprintf(" skip %d", s.Skip)
	}
	return line + "  # " + s.What
}

// String renders an argument.
func (a Arg) String() string {
	switch a.Kind {
	case Fd:
		return "<" + a.S + ">"
	case Res:
		return fmt.Sprintf("s%d", a.N)
	case Str:
		return fmt.Sprintf("%q", a.S)
	case Bytes:
		if len(a.S) > 32 {
			return fmt.Sprintf("[%d bytes]", len(a.S))
		}
		return fmt.Sprintf("[%x]", a.S)
	case Vec:
		return fmt.Sprintf("%q", *a.V)
	case Filter:
		return fmt.Sprintf("[filter of %d instructions]", len(a.S)/8)
	case Own:
		return "<sync>"
	case Imm:
	}
	if int64(a.N) < 0 { //nolint:gosec // two's complement is meant
		return fmt.Sprint(int64(a.N)) //nolint:gosec // as above
	}
	if a.N > 9 {
		return fmt.Sprintf("%#x", a.N)
	}
	return fmt.Sprint(a.N)
}
