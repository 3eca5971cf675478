// Package udptun is mode udp: a TUN device whose packets this process wraps in plain UDP, one packet in each datagram
// without any header of its own. It is the last resort for networks that carry neither VXLAN nor foreign routes; every
// packet is copied twice through this process.
//
// The device is persistent: it stays, with its routes and addresses, while no agent runs, and the next one takes it up.
package udptun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/cni/internal/rtnl"
)

// alias marks the device.
const alias = "berth-netd"

// maxPacket is the largest IP packet, in bytes.
const maxPacket = 65535

// Tunnel is the device and its sockets. The zero value has none; one goroutine calls [Tunnel.Set].
type Tunnel struct {
	tun     *os.File
	sockets []*net.UDPConn
	bound   []netip.AddrPort
	// gone says that there is no device of an earlier agent either.
	gone  bool
	peers atomic.Pointer[peers]
	wg    sync.WaitGroup
	// Dropped counts packets that had no peer to go to, or came from one whose they cannot be.
	Dropped atomic.Uint64
}

// Set makes the tunnel what want says; nil removes the device. It returns what it had to do.
func (t *Tunnel) Set(want *overlay.UDP) (changes []string, err error) {
	if want == nil {
		return t.remove()
	}
	changes, err = t.ensure(want)
	if !errors.Is(err, errVanished) {
		return changes, err
	}
	if err := t.Close(); err != nil { // somebody deleted the device
		return changes, err
	}
	more, err := t.ensure(want)
	return append(changes, more...), err
}

func (t *Tunnel) ensure(want *overlay.UDP) (changes []string, err error) {
	p := newPeers(want.Peers)
	p.sockets = slices.Clone(t.sockets)
	t.peers.Store(p)
	if t.tun == nil {
		if t.tun, err = open(); err != nil {
			return nil, fmt.Errorf("link %s: %w", overlay.UDPName, err)
		}
		tun := t.tun
		t.wg.Go(func() { t.outward(tun) })
		changes = append(changes, "take up link "+overlay.UDPName)
	}
	done, err := configure(want)
	changes = append(changes, done...)
	if err != nil {
		return changes, err
	}
	t.gone = false
	var bound []netip.AddrPort
	for _, a := range want.Local {
		bound = append(bound, netip.AddrPortFrom(a, want.Port))
	}
	if slices.Equal(bound, t.bound) {
		return changes, nil
	}
	return append(changes, fmt.Sprintf("listen on %v", bound)), t.listen(bound)
}

// listen replaces the sockets.
func (t *Tunnel) listen(bound []netip.AddrPort) error {
	err := t.silence()
	for _, a := range bound {
		c, lerr := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if lerr != nil {
			return errors.Join(err, lerr, t.silence())
		}
		t.sockets = append(t.sockets, c)
		tun := t.tun
		t.wg.Go(func() { t.inward(c, tun) })
	}
	t.bound = bound
	p := *t.peers.Load()
	p.sockets = slices.Clone(t.sockets)
	t.peers.Store(&p)
	return err
}

func (t *Tunnel) silence() error {
	var all []error
	for _, c := range t.sockets {
		all = append(all, c.Close())
	}
	t.sockets, t.bound = nil, nil
	return errors.Join(all...)
}

// Close ends the work and leaves the device.
func (t *Tunnel) Close() error {
	err := t.silence()
	if t.tun != nil {
		err = errors.Join(err, t.tun.Close())
		t.tun = nil
	}
	t.wg.Wait()
	return err
}

// remove takes the device away, also one that an earlier agent left.
func (t *Tunnel) remove() ([]string, error) {
	if t.gone {
		return nil, nil
	}
	err := t.Close()
	c, derr := nlwire.Dial(unix.NETLINK_ROUTE)
	if derr != nil {
		return nil, errors.Join(err, derr)
	}
	defer c.Close() //nolint:errcheck // nothing buffered
	l, found, lerr := link(c)
	err = errors.Join(err, lerr)
	t.gone = err == nil
	if err != nil || !found || l.Alias != alias {
		return nil, err
	}
	return []string{"delete link " + overlay.UDPName}, c.Do([]nlwire.Op{rtnl.DelLink(l.Index)})
}

// open takes the device up, or makes it.
func open() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(overlay.UDPName)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), overlay.UDPName), nil
}

func link(c *nlwire.Conn) (l rtnl.Link, found bool, err error) {
	ms, err := c.Query("look up link "+overlay.UDPName, rtnl.GetLink(overlay.UDPName))
	if errors.Is(err, unix.ENODEV) || err == nil && len(ms) == 0 {
		return l, false, nil
	}
	if err != nil {
		return l, false, err
	}
	l, found = rtnl.ParseLink(ms[0])
	return l, found, nil
}

var errVanished = errors.New("link " + overlay.UDPName + " vanished")

// configure makes the device's settings and addresses right.
func configure(want *overlay.UDP) (changes []string, err error) {
	c, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // nothing buffered
	l, found, err := link(c)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errVanished
	}
	ops, err := settings(c, l, want)
	if err != nil {
		return nil, err
	}
	for i := range ops {
		changes = append(changes, ops[i].What)
	}
	return changes, c.Do(ops)
}

func settings(c *nlwire.Conn, l rtnl.Link, want *overlay.UDP) (ops []nlwire.Op, err error) {
	if want.MTU > 0 && l.MTU != want.MTU {
		ops = append(ops, rtnl.SetAttrs(l.Index, rtnl.Attrs{MTU: &want.MTU}))
	}
	if l.Alias != alias || !l.Up {
		_, v6 := os.Stat("/proc/thread-self/net/if_inet6")
		ops = append(ops, rtnl.ConfigureTunnel(l.Index, alias, v6 == nil), rtnl.SetUp(l.Index))
	}
	ms, err := c.Query("list addresses", rtnl.DumpAddrs())
	if err != nil {
		return nil, err
	}
	have := map[netip.Addr]bool{}
	for _, m := range ms {
		index, p, ok := rtnl.ParsePrefix(m)
		if !ok || index != l.Index {
			continue
		}
		have[p.Addr()] = true
		if !slices.Contains(want.Addrs, p.Addr()) && !p.Addr().IsLinkLocalUnicast() {
			ops = append(ops, rtnl.DelAddr(l.Index, p))
		}
	}
	for _, a := range want.Addrs {
		if !have[a] {
			ops = append(ops, rtnl.AddAddr(l.Index, netip.PrefixFrom(a, a.BitLen())))
		}
	}
	return ops, nil
}
