package offload

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is that of one device and family. It is bound to the device: nothing that comes another way is heard, and it
// ends with the device, to be made again for the next of its name. Questions of both kinds have the same ports, so that
// no firewall between tells them apart.
type socket struct {
	c    *net.UDPConn
	l    link
	mu   sync.Mutex
	done chan struct{} // closed once nothing is heard any more
}

// open binds to a device by name.
func open(ctx context.Context, l link) (*socket, error) {
	network, at := "udp4", netip.IPv4Unspecified()
	if l.v6 {
		network, at = "udp6", netip.IPv6Unspecified()
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = options(int(fd), l) }); cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(at, l.port).String())
	if err != nil {
		return nil, err
	}
	return &socket{c: c.(*net.UDPConn), l: l, done: make(chan struct{})}, nil //nolint:errcheck // what udp networks give
}

// options of a socket, which hears also what has no checksum; see socket(7), udp(7), and RFC 6935 for IPv6.
func options(fd int, l link) error {
	err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, l.dev)
	if l.v6 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1))
	}
	return err
}

// without says whether the next packets have no checksum.
func without(fd int, v6, yes bool) error {
	value := 0
	if yes {
		value = 1
	}
	if v6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, value)
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, value)
}

func (s *socket) close() error {
	err := s.c.Close()
	<-s.done
	return err
}

// send is lost without a word where it cannot be sent: an answer that does not come is the same.
func (s *socket) send(m message, to netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, err := s.c.SyscallConn()
	if err != nil {
		return
	}
	var oerr error
	if err := raw.Control(func(fd uintptr) { oerr = without(int(fd), s.l.v6, m.kind != summed) }); err != nil || oerr != nil {
		return
	}
	_, _ = s.c.WriteToUDPAddrPort(m.bytes(), netip.AddrPortFrom(to, s.l.port))
}

// calm is how long a socket is left alone that cannot be read.
const calm = 10 * time.Millisecond

// hear reads until the socket is closed.
func (s *socket) hear(got func(m message, from netip.Addr)) {
	defer close(s.done)
	buf := make([]byte, size+1)
	for {
		n, from, err := s.c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP message about what was sent, or a device that is gone
			time.Sleep(calm)
			continue
		}
		if m, err := parse(buf[:n]); err == nil {
			got(m, from.Addr().Unmap())
		}
	}
}
