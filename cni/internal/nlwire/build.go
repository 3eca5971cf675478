// Package nlwire writes and reads the bytes of netlink messages: headers, attributes, nests (RFC 3549,
// linux/netlink.h). It knows no family and opens no socket, so everything in it is pure; rtnl, nfnl and ctnl put
// their own meaning on top. All integers are in the host's byte order unless a name ends in BE.
//
// It exists beside the usual netlink libraries because the plugin is a process that lives for a few
// milliseconds: these need package net, reflection tables and one round trip per object; this needs neither.
package nlwire

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// headerLen is sizeof(struct nlmsghdr); attrLen is sizeof(struct nlattr).
const (
	headerLen = 16
	attrLen   = 4
)

// Op is one request of a batch. Its text is what an error says was being done.
type Op struct {
	// What names the operation for a human: "add route 10.88.0.7/32 dev bth1".
	What string
	// Msg is the whole message with sequence number zero; the connection sets it.
	Msg []byte
	// Tolerate lists the errors that mean "already so", and are therefore no error.
	Tolerate []unix.Errno
}

// Tolerates says whether errno is one of op's expected outcomes.
func (op *Op) Tolerates(errno unix.Errno) bool {
	for _, e := range op.Tolerate {
		if e == errno {
			return true
		}
	}
	return false
}

// Builder appends one netlink message. Its zero value is not usable; see [New].
type Builder struct {
	b []byte
}

// New starts a message of the given type and flags with the family's fixed header.
func New(typ, flags uint16, fixed []byte) *Builder {
	b := make([]byte, headerLen, 256)
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	b = append(b, fixed...)
	return &Builder{b: pad(b)}
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// Raw appends bytes that are no attribute (a nested fixed header such as VETH_INFO_PEER's).
func (m *Builder) Raw(v []byte) *Builder {
	m.b = pad(append(m.b, v...))
	return m
}

// Bytes appends an attribute with an opaque value.
func (m *Builder) Bytes(typ uint16, v []byte) *Builder {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(attrLen+len(v)))
	m.b = binary.NativeEndian.AppendUint16(m.b, typ)
	m.b = pad(append(m.b, v...))
	return m
}

// Str appends a string attribute with its terminating zero.
func (m *Builder) Str(typ uint16, s string) *Builder { return m.Bytes(typ, append([]byte(s), 0)) }

// U8 appends a one-byte attribute.
func (m *Builder) U8(typ uint16, v uint8) *Builder { return m.Bytes(typ, []byte{v}) }

// U32 appends a four-byte attribute in host order.
func (m *Builder) U32(typ uint16, v uint32) *Builder {
	return m.Bytes(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// U32BE appends a four-byte attribute in network order, as nfnetlink has them.
func (m *Builder) U32BE(typ uint16, v uint32) *Builder {
	return m.Bytes(typ, binary.BigEndian.AppendUint32(nil, v))
}

// U16BE appends a two-byte attribute in network order.
func (m *Builder) U16BE(typ uint16, v uint16) *Builder {
	return m.Bytes(typ, binary.BigEndian.AppendUint16(nil, v))
}

// Nest appends an attribute whose value is what fill appends.
func (m *Builder) Nest(typ uint16, fill func(*Builder)) *Builder {
	start := len(m.b)
	m.Bytes(typ|unix.NLA_F_NESTED, nil)
	fill(m)
	binary.NativeEndian.PutUint16(m.b[start:], uint16(len(m.b)-start))
	return m
}

// Done ends the message and returns its bytes.
func (m *Builder) Done() []byte {
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	return m.b
}

// SetSeq writes the sequence number into a finished message.
func SetSeq(msg []byte, seq uint32) { binary.NativeEndian.PutUint32(msg[8:], seq) }

// AddFlags sets more flags in a finished message.
func AddFlags(msg []byte, flags uint16) {
	binary.NativeEndian.PutUint16(msg[6:], binary.NativeEndian.Uint16(msg[6:])|flags)
}

func clearFlags(msg []byte, flags uint16) {
	binary.NativeEndian.PutUint16(msg[6:], binary.NativeEndian.Uint16(msg[6:])&^flags)
}
