package udptun

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// pause is how long a device that cannot be read is left alone.
const pause = 50 * time.Millisecond

// peers are the ways out, sorted by block, and the sockets. It is never changed, only replaced.
type peers struct {
	blocks  []overlay.UDPPeer
	sockets []*net.UDPConn
}

func newPeers(all []overlay.UDPPeer) *peers {
	p := &peers{blocks: slices.Clone(all)}
	slices.SortFunc(p.blocks, func(a, b overlay.UDPPeer) int { return fabric.ComparePrefix(a.Block, b.Block) })
	return p
}

// of is the peer whose block has the address. Blocks do not overlap, so it is the last that begins at or before it.
func (p *peers) of(a netip.Addr) (netip.Addr, bool) {
	i, found := slices.BinarySearchFunc(p.blocks, a, func(b overlay.UDPPeer, a netip.Addr) int { return b.Block.Addr().Compare(a) })
	if !found {
		i--
	}
	if i < 0 || !p.blocks[i].Block.Contains(a) {
		return netip.Addr{}, false
	}
	return p.blocks[i].Dst, true
}

// ends are source and destination of an IP packet.
func ends(b []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), true
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), true
	}
	return src, dst, false
}

// socket is one that sends to addresses of that family, and its port.
func (p *peers) socket(v6 bool) (*net.UDPConn, uint16) {
	for _, c := range p.sockets {
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok && (a.IP.To4() == nil) == v6 {
			return c, uint16(a.Port) //nolint:gosec // a port
		}
	}
	return nil, 0
}

// outward takes packets off the device until that is closed. What cannot be sent is lost, as on any network.
func (t *Tunnel) outward(tun io.Reader) {
	buf := make([]byte, maxPacket)
	for {
		n, err := tun.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(pause) // the device was deleted, or is down: the agent sees to it
			continue
		}
		p := t.peers.Load()
		_, dst, ok := ends(buf[:n])
		to, known := p.of(dst)
		c, port := p.socket(to.Is6())
		if !ok || !known || c == nil {
			t.Dropped.Add(1)
			continue
		}
		if _, err := c.WriteToUDPAddrPort(buf[:n], netip.AddrPortFrom(to, port)); err != nil {
			t.Dropped.Add(1)
		}
	}
}

// inward takes datagrams of one socket: only from peers, and from each only what its own blocks' addresses have sent.
func (t *Tunnel) inward(c *net.UDPConn, tun io.Writer) {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP message about what was sent
		}
		src, _, ok := ends(buf[:n])
		if peer, known := t.peers.Load().of(src); !ok || !known || peer != from.Addr().Unmap() {
			t.Dropped.Add(1)
			continue
		}
		if _, err := tun.Write(buf[:n]); err != nil {
			t.Dropped.Add(1)
		}
	}
}
