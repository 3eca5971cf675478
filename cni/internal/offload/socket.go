package offload

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockets are those of one device and family. They are bound to the device: nothing that comes another way is heard, and
// they end with the device, to be made again for the next of its name.
type sockets struct {
	plain, summed *net.UDPConn
	port          uint16
}

// open binds to a device by name. The first socket sends without checksums and hears everything; the second lets the
// device fill in checksums.
func open(ctx context.Context, l link) (*sockets, error) {
	network, any4, any6 := "udp4", netip.IPv4Unspecified(), netip.IPv6Unspecified()
	at := any4
	if l.v6 {
		network, at = "udp6", any6
	}
	bind := func(port uint16, without bool) (*net.UDPConn, error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			if cerr := c.Control(func(fd uintptr) { err = options(int(fd), l.dev, l.v6, without) }); cerr != nil {
				return cerr
			}
			return err
		}}
		c, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(at, port).String())
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil //nolint:errcheck // what udp networks give
	}
	s := &sockets{port: l.port}
	var err error
	if s.plain, err = bind(l.port, true); err != nil {
		return nil, err
	}
	if s.summed, err = bind(0, false); err != nil {
		return nil, errors.Join(err, s.plain.Close())
	}
	return s, nil
}

// options of a socket; see socket(7) and udp(7) for what is without checksum (RFC 6935 for IPv6).
func options(fd int, dev string, v6, without bool) error {
	err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, dev)
	if !without {
		return err
	}
	if !v6 {
		return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
	}
	return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1))
}

func (s *sockets) close() error { return errors.Join(s.plain.Close(), s.summed.Close()) }

// send is lost without a word where it cannot be sent: an answer that does not come is the same.
func (s *sockets) send(m message, to netip.Addr) {
	c := s.plain
	if m.kind == summed {
		c = s.summed
	}
	_, _ = c.WriteToUDPAddrPort(m.bytes(), netip.AddrPortFrom(to, s.port))
}

// hear reads until the sockets are closed.
func (s *sockets) hear(got func(m message, from netip.Addr)) {
	buf := make([]byte, size+1)
	for {
		n, from, err := s.plain.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP message about what was sent
		}
		if m, err := parse(buf[:n]); err == nil {
			got(m, from.Addr().Unmap())
		}
	}
}
