package netlab

import (
	"encoding/binary"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Spoil puts a wire between the port and its switch that does what a network card with a known fault does: of a UDP
// packet it computes the checksum it was left to compute, and of what is wrapped in the packet it does not.
func (p *Port) Spoil() {
	s := p.sw
	s.t.Helper()
	near, inner := "w0"+p.far, "w1"+p.far
	s.Run("ip link set "+p.far+" nomaster", "ip link add "+near+" type veth peer name "+inner,
		"ip link set "+inner+" master br0 up", "ip link set "+near+" up")
	a, b := s.packets(p.far), s.packets(near)
	go carry(a, b)
	go carry(b, a)
	s.t.Cleanup(func() { _ = errors.Join(a.Close(), b.Close()) })
}

// packets is a socket with all frames that a link receives. It ends with the file.
func (n *NS) packets(dev string) *os.File {
	n.t.Helper()
	var f *os.File
	err := n.Do(func() error {
		l, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		const all = 0x0300 // htons(ETH_P_ALL)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), dev)
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index}))
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return f
}

// carry copies frames until one of the files is closed. One that does not fit is lost.
func carry(from, to *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err == nil {
			checksum(buf[:n])
			_, err = to.Write(buf[:n])
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// checksum completes that of an Ethernet frame's UDP packet (RFC 768, RFC 8200 §8.1).
func checksum(frame []byte) {
	const eth, udp = 14, 17
	var addrs, payload []byte
	switch b := frame[min(eth, len(frame)):]; {
	case len(b) >= 28 && b[0] == 0x45 && b[9] == udp:
		addrs, payload = b[12:20], b[20:]
	case len(b) >= 48 && b[0]>>4 == 6 && b[6] == udp:
		addrs, payload = b[8:40], b[40:]
	default:
		return
	}
	n := int(binary.BigEndian.Uint16(payload[4:]))
	if n < 8 || n > len(payload) {
		return
	}
	payload = payload[:n]
	copy(payload[6:8], []byte{0, 0})
	sum := uint32(udp) + uint32(n)
	for _, part := range [][]byte{addrs, payload} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i]) << 8
			if i+1 < len(part) {
				sum += uint32(part[i+1])
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum = ^sum & 0xffff; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(payload[6:], uint16(sum))
}
