package nlwire

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Message is one received message.
type Message struct {
	Type, Flags uint16
	Seq         uint32
	// Port is the socket that caused a notification; 0 is the kernel itself.
	Port uint32
	// Body is everything after the header.
	Body []byte
}

// Errno is the outcome that an NLMSG_ERROR message carries; zero is an acknowledgement.
func (m Message) Errno() unix.Errno {
	if len(m.Body) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Body)))
}

// Split cuts a datagram into its messages. A length that does not fit is an error: the kernel never sends one.
func Split(b []byte) ([]Message, error) {
	var out []Message
	for len(b) >= headerLen {
		n := int(binary.NativeEndian.Uint32(b))
		if n < headerLen || n > len(b) {
			return nil, fmt.Errorf("netlink: message of %d bytes in %d", n, len(b))
		}
		out = append(out, Message{
			Type:  binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]),
			Seq:   binary.NativeEndian.Uint32(b[8:]),
			Port:  binary.NativeEndian.Uint32(b[12:]),
			Body:  b[headerLen:n],
		})
		b = b[min((n+3)&^3, len(b)):]
	}
	return out, nil
}

// Attrs calls visit for each attribute in b, with the nested and byte-order flags taken off the type. Trailing
// bytes that form no attribute end the walk.
func Attrs(b []byte, visit func(typ uint16, v []byte)) {
	for len(b) >= attrLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrLen || n > len(b) {
			return
		}
		visit(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[attrLen:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// U32 reads a host-order integer; a short value is zero.
func U32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// Str reads a string up to its terminating zero.
func Str(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}
