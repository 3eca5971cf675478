package offload

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// kind says what a message is and, of a question, how it was sent.
type kind byte

const (
	// plain is a question without a checksum, which nothing on the way can spoil.
	plain kind = 1
	// summed is a question whose checksum the device was left to fill in.
	summed kind = 2
	// heardPlain and heardSummed are answers; they carry no checksum.
	heardPlain  kind = 3
	heardSummed kind = 4
)

const (
	magic = "berthck1"
	// size is that of every message, in bytes: magic, kind, three bytes of zero, nonce.
	size = len(magic) + 4 + 8
)

// message is a question or an answer; the answer repeats the question's nonce.
type message struct {
	kind  kind
	nonce uint64
}

func (m message) bytes() []byte {
	b := make([]byte, size)
	copy(b, magic)
	b[len(magic)] = byte(m.kind)
	binary.BigEndian.PutUint64(b[size-8:], m.nonce)
	return b
}

var errForeign = errors.New("no message of the self-test")

func parse(b []byte) (message, error) {
	if len(b) != size || string(b[:len(magic)]) != magic {
		return message{}, errForeign
	}
	m := message{kind: kind(b[len(magic)]), nonce: binary.BigEndian.Uint64(b[size-8:])}
	if m.kind < plain || m.kind > heardSummed || [3]byte(b[len(magic)+1:]) != [3]byte{} {
		return message{}, fmt.Errorf("%w: kind %d", errForeign, m.kind)
	}
	return m, nil
}

// answer is what a question gets.
func (m message) answer() (message, bool) {
	switch m.kind {
	case plain:
		return message{heardPlain, m.nonce}, true
	case summed:
		return message{heardSummed, m.nonce}, true
	}
	return message{}, false
}
