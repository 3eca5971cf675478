package bgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Types of BGP messages (RFC 4271 §4.1, RFC 2918).
const (
	msgOpen         = 1
	msgUpdate       = 2
	msgNotification = 3
	msgKeepalive    = 4
	msgRefresh      = 5
)

// message puts the header before a body.
func message(typ byte, body []byte) []byte {
	b := make([]byte, 19, 19+len(body))
	for i := range 16 {
		b[i] = 0xff
	}
	binary.BigEndian.PutUint16(b[16:], uint16(19+len(body)))
	b[18] = typ
	return append(b, body...)
}

func attr(flags, typ byte, v ...byte) []byte {
	return append([]byte{flags, typ, byte(len(v))}, v...)
}

func join(all ...[]byte) (out []byte) {
	for _, b := range all {
		out = append(out, b...)
	}
	return out
}

func update(withdrawn, attrs, nlri []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(withdrawn)))
	b = append(b, withdrawn...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(attrs)))
	return message(msgUpdate, join(b, attrs, nlri))
}

// openMessage offers all that we and gobgp can: families, 4-byte AS, refresh, graceful restart, add-path, extended
// next hops, long messages, a name.
func openMessage(asn uint32, id netip.Addr) []byte {
	as4 := binary.BigEndian.AppendUint32(nil, asn)
	capability := func(code byte, v ...byte) []byte { return append([]byte{code, byte(len(v))}, v...) }
	caps := join(
		capability(1, 0, 1, 0, 1), capability(1, 0, 2, 0, 1), capability(2), capability(6), capability(70),
		capability(65, as4...), capability(5, 0, 1, 0, 1, 0, 2), capability(64, 0x40, 120, 0, 1, 1, 0x80, 0, 2, 1, 0x80),
		capability(71, 0, 1, 1, 0x80, 0, 0, 60), capability(73, 3, 'r', 'a', 'w', 0),
	)
	short := asn
	if short > 65535 {
		short = 23456
	}
	body := join([]byte{4, byte(short >> 8), byte(short), 0, 90}, id.AsSlice(), []byte{byte(len(caps) + 2), 2, byte(len(caps))}, caps)
	return message(msgOpen, body)
}

// richUpdate has every attribute that a peer of ours could put into an UPDATE, right or out of place.
func richUpdate(asn uint32, nh netip.Addr) []byte {
	as4 := binary.BigEndian.AppendUint32(nil, asn)
	v6 := netip.MustParseAddr("fd00::77").As16()
	ll := netip.MustParseAddr("fe80::77").As16()
	attrs := join(
		attr(0x40, 1, 0), // ORIGIN
		attr(0x40, 2, join([]byte{2, 2}, as4, as4)...),    // AS_PATH
		attr(0x40, 3, nh.AsSlice()...),                    // NEXT_HOP
		attr(0x80, 4, 0, 0, 0, 9),                         // MED
		attr(0x40, 5, 0, 0, 0, 100),                       // LOCAL_PREF
		attr(0x40, 6),                                     // ATOMIC_AGGREGATE
		attr(0xc0, 7, join(as4, []byte{1, 2, 3, 4})...),   // AGGREGATOR
		attr(0xc0, 8, 0xfc, 0, 0, 7, 0xff, 0xff, 0xff, 1), // COMMUNITIES
		attr(0x80, 9, 1, 2, 3, 4),                         // ORIGINATOR_ID
		attr(0x80, 10, 1, 2, 3, 4, 5, 6, 7, 8),            // CLUSTER_LIST
		attr(0x80, 14, join([]byte{0, 2, 1, 32}, v6[:], ll[:], []byte{0, 64, 0xfd, 0, 2, 0x44, 0, 9, 0, 0})...), // MP_REACH_NLRI
		attr(0x80, 15, 0, 2, 1, 64, 0xfd, 0, 2, 0x44, 0, 8, 0, 0),                                               // MP_UNREACH_NLRI
		attr(0xc0, 16, 0, 2, 0xfc, 0, 0, 0, 0, 1, 3, 0xc, 0, 0, 0, 0, 0, 8),                                     // EXTENDED COMMUNITIES
		attr(0xc0, 17, join([]byte{2, 1}, as4)...),                                                              // AS4_PATH
		attr(0xc0, 18, join(as4, []byte{1, 2, 3, 4})...),                                                        // AS4_AGGREGATOR
		attr(0xc0, 22, 0, 6, 0, 0, 1, 1, 2, 3, 4),                                                               // PMSI_TUNNEL
		attr(0xc0, 23, 0, 8, 0, 8, 1, 2, 0, 8, 4, 2, 8, 0),                                                      // TUNNEL_ENCAP
		attr(0xc0, 25, 0, 2, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),                           // IPv6 EXT COMMUNITIES
		attr(0x80, 26, 1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 5),                                                        // AIGP
		attr(0x80, 29, 2, 0, 0, 4, 'n', 'o', 'd', 'e'),                                                          // BGP-LS
		attr(0xc0, 32, 0, 0, 0xfc, 0, 0, 0, 0, 1, 0, 0, 0, 2),                                                   // LARGE COMMUNITY
		attr(0xc0, 40, 1, 0, 7, 0, 0, 0, 0, 0, 0, 5, 5, 0, 6, 0, 0, 0, 0, 0, 0),                                 // PREFIX_SID
		attr(0xc0, 200, 1, 2, 3),                                                                                // unknown
	)
	return update([]byte{24, 10, 244, 8}, attrs, []byte{24, 10, 244, 9, 32, 10, 244, 9, 9})
}

// plainUpdate announces one prefix, as well as can be.
func plainUpdate(asn uint32, nh netip.Addr, nlri ...byte) []byte {
	as4 := binary.BigEndian.AppendUint32(nil, asn)
	return update(nil, join(attr(0x40, 1, 0), attr(0x40, 2, join([]byte{2, 1}, as4)...), attr(0x40, 3, nh.AsSlice()...)), nlri)
}

// rawPeer is one end of a session, byte by byte.
type rawPeer struct {
	at    *node
	local netip.Addr
	us    netip.Addr
	asn   uint32
	conn  net.Conn
	buf   []byte
}

// connect opens the TCP connection and says open; if that is a good OPEN, the session is up afterwards.
func (r *rawPeer) connect(open []byte) error {
	err := r.at.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: r.local.AsSlice()}, Timeout: 2 * time.Second}
		r.conn, err = d.Dial("tcp", netip.AddrPortFrom(r.us, 179).String())
		return err
	})
	if err != nil {
		return err
	}
	r.buf = nil
	if err := r.send(open); err != nil {
		return err
	}
	for up := false; !up; {
		typ, err := r.read(2 * time.Second)
		if err != nil {
			return err
		}
		switch typ {
		case msgOpen:
			err = r.send(message(msgKeepalive, nil))
		case msgKeepalive:
			up = true
		case msgNotification:
			err = errors.New("refused with a NOTIFICATION")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *rawPeer) send(b []byte) error {
	if err := r.conn.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	_, err := r.conn.Write(b)
	return err
}

// read is the type of the next message.
func (r *rawPeer) read(within time.Duration) (byte, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return 0, err
	}
	head := make([]byte, 19)
	if _, err := io.ReadFull(r.conn, head); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint16(head[16:])) - 19
	if n < 0 {
		return 0, fmt.Errorf("a message of %d bytes", n+19)
	}
	_, err := io.CopyN(io.Discard, r.conn, n)
	return head[18], err
}

// digested asks for a refresh of IPv4 and waits for an UPDATE, so that all before it has been handled. An error is
// the end of the session, which is an answer too.
func (r *rawPeer) digested() error {
	// What was sent at the beginning of the session is not the answer.
	for {
		if _, err := r.read(20 * time.Millisecond); err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			return err
		}
	}
	if err := r.send(message(msgRefresh, []byte{0, 1, 0, 1})); err != nil {
		return err
	}
	for {
		typ, err := r.read(3 * time.Second)
		if err != nil || typ == msgUpdate {
			return err
		}
		if typ == msgNotification {
			return errors.New("a NOTIFICATION")
		}
	}
}

func (r *rawPeer) close() {
	if r.conn != nil {
		_ = r.conn.Close()
	}
}
