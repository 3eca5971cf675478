package seccomp

import (
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// assembler writes a classic BPF program from its end to its beginning, so that the distance of every (forward)
// jump is known when the jump is written.
type assembler struct {
	code []unix.SockFilter // reversed
}

// label is a place in the program: the number of instructions from there to the end.
type label int

// emit puts in before everything emitted so far.
func (a *assembler) emit(in unix.SockFilter) label {
	a.code = append(a.code, in)
	return label(len(a.code))
}

func (a *assembler) ret(action uint32) label {
	return a.emit(unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
}

// load reads the word at offset of struct seccomp_data.
func (a *assembler) load(offset uint32) label {
	return a.emit(unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

func (a *assembler) and(mask uint32) label {
	return a.emit(unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
}

// jump compares the accumulator with k. A conditional jump reaches 255 instructions; beyond that it lands on a
// copy of the target, if that is a return, or on a long jump.
func (a *assembler) jump(op uint16, k uint32, yes, no label) label {
	yes = a.near(yes, 1)
	no = a.near(no, 0)
	yes = a.near(yes, 0)
	here := len(a.code)
	return a.emit(unix.SockFilter{
		Code: unix.BPF_JMP | op | unix.BPF_K, K: k,
		Jt: uint8(here - int(yes)), Jf: uint8(here - int(no)), //nolint:gosec // near makes them fit
	})
}

// near returns a label that the next instruction but spare can reach and that does what l does.
func (a *assembler) near(l label, spare int) label {
	distance := len(a.code) - int(l)
	if distance+spare <= math.MaxUint8 {
		return l
	}
	if target := a.code[l-1]; target.Code == unix.BPF_RET|unix.BPF_K {
		return a.emit(target)
	}
	return a.emit(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(distance)}) //nolint:gosec // below 4096
}

// bytes returns the program in order, as an array of struct sock_filter.
func (a *assembler) bytes() ([]byte, error) {
	if len(a.code) > 4096 { // BPF_MAXINSNS
		return nil, errs.ResourceExhausted.Errorf("the seccomp profile needs %d instructions, more than 4096", len(a.code))
	}
	b := make([]byte, 0, 8*len(a.code))
	for i := len(a.code) - 1; i >= 0; i-- {
		in := a.code[i]
		b = binary.LittleEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.LittleEndian.AppendUint32(b, in.K)
	}
	return b, nil
}
