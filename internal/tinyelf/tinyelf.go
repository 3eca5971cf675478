// Package tinyelf writes programs of a few instructions: a static ELF file of one header, one segment that is read and executed,
// and the code (elf(5)). Whoever needs a process that does next to nothing has one of 200 bytes, and no file of it on the node.
package tinyelf

import (
	"encoding/binary"
	"fmt"
)

const (
	base    = 0x400000 // where the program is mapped
	headers = 64 + 56
)

// Program is the ELF file for an architecture as Go names it. code starts at its first byte and may hold data at its end;
// its only writable memory is the stack. There is one for amd64 and one for arm64; another architecture is an error.
func Program(arch string, amd64, arm64 []byte) ([]byte, error) {
	var code []byte
	var machine uint16
	switch arch {
	case "amd64":
		machine, code = 62, amd64
	case "arm64":
		machine, code = 183, arm64
	default:
		return nil, fmt.Errorf("no program for %s", arch)
	}
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	for _, v := range [...]uint64{base + headers, 64, 0} { // entry, program headers, no sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range [...]uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	size := uint64(headers + len(code)) //nolint:gosec // small
	b = le.AppendUint32(b, 1)           // PT_LOAD
	b = le.AppendUint32(b, 5)           // R+X
	for _, v := range [...]uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...), nil
}

// Words are instructions of four bytes, as arm64 has them.
func Words(all ...uint32) []byte {
	var b []byte
	for _, w := range all {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}
