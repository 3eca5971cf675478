package launch

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/shim/internal/plan"
)

// program is an assembled plan: the raw steps and all the memory they point into, which must stay reachable and
// unmoved until the clone is done. Heap objects of Go do not move.
type program struct {
	steps []rawStep
	first int // index in steps of the plan's step 0
	data  []byte
	ptrs  []uintptr
	clone cloneArgs
	hdr   unix.Msghdr
	iov   unix.Iovec
	one   byte
	zero  byte // '0': whoever writes it to a tasks file enters that cgroup
	fprog unix.SockFprog
}

// own are the descriptors that the launcher itself makes for a child.
type own struct {
	done, sync, sock int
}

// assemble lays out p. First come the steps that enter the cgroups of the tasks files joins, then those that close all
// descriptors which the plan does not name.
func assemble(p *plan.Plan, o own, pg *page, joins []int) (*program, error) {
	if p.Slots() > plan.MaxSlots {
		return nil, fmt.Errorf("plan uses %d slots, more than %d", p.Slots(), plan.MaxSlots)
	}
	g := &program{zero: '0'}
	data, ptrs := measure(p)
	g.data = make([]byte, 0, data+1)
	g.ptrs = make([]uintptr, 0, ptrs)
	for _, fd := range joins {
		g.steps = append(g.steps, rawStep{nr: unix.SYS_WRITE, arg: [6]uintptr{uintptr(fd), uintptr(unsafe.Pointer(&g.zero)), 1}}) //nolint:gosec // a descriptor
	}
	g.steps = append(g.steps, closeGaps(p, o)...)
	g.steps = slices.Grow(g.steps, len(p.Steps))
	g.first = len(g.steps)
	for i := range p.Steps {
		s, err := g.step(&p.Steps[i], o, pg)
		if err != nil {
			return nil, err
		}
		g.steps = append(g.steps, s)
	}
	return g, nil
}

func measure(p *plan.Plan) (data, ptrs int) {
	for i := range p.Steps {
		for _, a := range p.Steps[i].Args {
			switch a.Kind {
			case plan.Str:
				data += len(a.S) + 1
			case plan.Bytes, plan.Filter:
				data += (len(a.S)+7)&^7 + 8
			case plan.Vec:
				ptrs += len(*a.V) + 1
				for _, v := range *a.V {
					data += len(v) + 1
				}
			default:
			}
		}
	}
	return data, ptrs
}

func closeGaps(p *plan.Plan, o own) []rawStep {
	keep := []int{o.done}
	for i := range p.Steps {
		for _, a := range p.Steps[i].Args {
			if a.Kind == plan.Fd {
				keep = append(keep, int(a.N)) //nolint:gosec // a descriptor
			}
		}
	}
	for _, fd := range [...]int{o.sync, o.sock} {
		if fd >= 0 {
			keep = append(keep, fd)
		}
	}
	slices.Sort(keep)
	steps := make([]rawStep, 0, len(keep)+1)
	next := 3
	gap := func(from, to uintptr) {
		steps = append(steps, rawStep{nr: unix.SYS_CLOSE_RANGE, arg: [6]uintptr{from, to, 0}})
	}
	for _, fd := range keep {
		if fd > next {
			gap(uintptr(next), uintptr(fd-1)) //nolint:gosec // descriptors are positive
		}
		if fd >= next {
			next = fd + 1
		}
	}
	gap(uintptr(next), uintptr(^uint32(0))) //nolint:gosec // as above
	return steps
}

func (g *program) step(s *plan.Step, o own, pg *page) (rawStep, error) {
	r := rawStep{nr: s.Nr, want: s.Want, save: uint16(s.Save), skip: uint16(s.Skip)} //nolint:gosec // both small
	if s.Check {
		r.check = 1
	}
	if len(s.Args) > 6 || len(s.Pass)+len(s.Note) > len(r.errs) {
		return r, fmt.Errorf("step %q has too many arguments or errnos", s.What)
	}
	for _, e := range s.Pass {
		r.errs[r.pass] = uint16(e) //nolint:gosec // errnos are below 4096
		r.pass++
	}
	for _, e := range s.Note {
		r.errs[r.pass+r.note] = uint16(e) //nolint:gosec // as above
		r.note++
	}
	for i, a := range s.Args {
		r.arg[i] = g.arg(a, o)
		if a.Kind == plan.Res {
			r.slots |= 1 << i
		}
	}
	switch s.Nr {
	case plan.NrClone:
		g.clone = cloneArgs{
			flags: uint64(r.arg[0]) | unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID, exitSignal: 0,
			parentTID: uint64(uintptr(unsafe.Pointer(&pg[wordChild]))),
		}
		r.arg[0] = uintptr(unsafe.Pointer(&g.clone))
	case plan.NrSendConsole:
		r.nr, r.arg = unix.SYS_SENDMSG, [6]uintptr{uintptr(o.sock), g.consoleMessage(pg), 0} //nolint:gosec // a descriptor
	default:
	}
	return r, nil
}

func (g *program) arg(a plan.Arg, o own) uintptr {
	switch a.Kind {
	case plan.Own:
		return uintptr(o.sync) //nolint:gosec // a descriptor
	case plan.Str:
		return g.str(a.S)
	case plan.Bytes:
		return g.bytes(a.S)
	case plan.Filter:
		at := g.put(a.S)
		g.fprog.Len = uint16(len(a.S) / 8) //nolint:gosec // checked when compiled
		g.fprog.Filter = (*unix.SockFilter)(unsafe.Pointer(&g.data[at]))
		return uintptr(unsafe.Pointer(&g.fprog))
	case plan.Vec:
		at := len(g.ptrs)
		for _, v := range *a.V {
			g.ptrs = append(g.ptrs, g.str(v))
		}
		g.ptrs = append(g.ptrs, 0)
		return uintptr(unsafe.Pointer(&g.ptrs[at]))
	default:
		return uintptr(a.N)
	}
}

func (g *program) str(s string) uintptr {
	at := len(g.data)
	g.data = append(append(g.data, s...), 0)
	return uintptr(unsafe.Pointer(&g.data[at]))
}

func (g *program) bytes(b string) uintptr { return uintptr(unsafe.Pointer(&g.data[g.put(b)])) }

// put copies b, aligned to 8 bytes, because some are structs for the kernel.
func (g *program) put(b string) int {
	for len(g.data)%8 != 0 {
		g.data = append(g.data, 0)
	}
	at := len(g.data)
	g.data = append(g.data, b...)
	if len(b) == 0 {
		g.data = append(g.data, 0)
	}
	return at
}

// consoleMessage makes the message that sends the descriptor in slot Console: one byte of data, and a control
// message whose payload is the slot itself, in the shared page.
func (g *program) consoleMessage(pg *page) uintptr {
	cmsg := (*unix.Cmsghdr)(unsafe.Pointer(&pg[wordCmsg]))
	cmsg.Level, cmsg.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	cmsg.SetLen(unix.CmsgLen(4))
	g.iov.Base = &g.one
	g.iov.SetLen(1)
	g.hdr.Iov = &g.iov
	g.hdr.SetIovlen(1)
	g.hdr.Control = (*byte)(unsafe.Pointer(cmsg))
	g.hdr.SetControllen(unix.CmsgSpace(4))
	return uintptr(unsafe.Pointer(&g.hdr))
}
