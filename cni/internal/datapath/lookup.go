package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"golang.org/x/sys/unix"
)

// Lookup asks the kernel what it would do; it changes nothing.
type Lookup struct{ c *nlwire.Conn }

// OpenLookup opens a socket in the calling thread's namespace.
func OpenLookup() (*Lookup, error) {
	c, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &Lookup{c}, nil
}

// Close closes the socket.
func (l *Lookup) Close() error { return l.c.Close() }

// Found is the route that decides about an address.
type Found struct {
	rtnl.Paths
	// Dev is the first hop's link; Tunnel says that it is a VXLAN device of ours.
	Dev                        string
	Tunnel, Local, Unreachable bool
	index                      int32
}

// Via is the first hop's gateway, or empty.
func (f Found) Via() string {
	if len(f.Hops) == 0 || !f.Hops[0].Via.IsValid() {
		return ""
	}
	return f.Hops[0].Via.String()
}

// String is the route as the ip command has it.
func (f Found) String() string {
	s := f.Dst.String()
	switch {
	case f.Unreachable:
		s = "unreachable " + s
	case f.Local:
		s = "local " + s
	}
	if via := f.Via(); via != "" {
		s += " via " + via
	}
	if f.Dev != "" {
		s += " dev " + f.Dev
	}
	if len(f.Hops) > 1 {
		s += fmt.Sprintf(" and %d more next hops", len(f.Hops)-1)
	}
	s += fmt.Sprintf(" proto %d", f.Protocol)
	if f.Metric > 0 {
		s += fmt.Sprintf(" metric %d", f.Metric)
	}
	if f.MTU > 0 {
		s += fmt.Sprintf(" mtu %d", f.MTU)
	}
	return s
}

// Route is the route of the kernel's tables that a packet to dst would take.
func (l *Lookup) Route(dst netip.Addr) (Found, error) {
	ms, err := l.c.Query("look up the route to "+dst.String(), rtnl.MatchRoute(dst))
	switch {
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES):
		return Found{Paths: rtnl.Paths{Dst: netip.PrefixFrom(dst, dst.BitLen())}, Unreachable: true}, nil
	case err != nil:
		return Found{}, err
	case len(ms) == 0 || len(ms[0].Body) < unix.SizeofRtMsg:
		return Found{}, fmt.Errorf("route to %s: the kernel did not answer", dst)
	}
	var f Found
	f.Paths, _ = rtnl.ParsePaths(ms[0]) // of any table
	kind := ms[0].Body[7]
	f.Local, f.Unreachable = kind == unix.RTN_LOCAL, kind == unix.RTN_UNREACHABLE
	if len(f.Hops) == 0 || f.Hops[0].Index == 0 {
		return f, nil
	}
	f.index = f.Hops[0].Index
	link, err := l.c.Query("look up a link", rtnl.GetLinkIndex(f.index))
	if err != nil || len(link) == 0 {
		return f, err
	}
	if p, ok := rtnl.ParseLink(link[0]); ok {
		f.Dev, f.Tunnel = p.Name, p.Kind == "vxlan" && p.Alias == Alias
	}
	return f, nil
}

// Wrapped is what a VXLAN device does with packets that take a route.
type Wrapped struct {
	MAC  rtnl.MAC
	VTEP netip.Addr
	VNI  uint32
	Port uint16
	MTU  int
}

// Wrapped looks the route's gateway up on the device.
func (l *Lookup) Wrapped(f Found) (w Wrapped, err error) {
	s, err := readLinks(l.c)
	if err != nil {
		return w, err
	}
	t := s.tunnels[f.Dev]
	if t == nil || len(f.Hops) == 0 {
		return w, fmt.Errorf("link %s is no tunnel", f.Dev)
	}
	if err := t.read(l.c); err != nil {
		return w, err
	}
	mac, ok := t.neighs[f.Hops[0].Via]
	if !ok {
		return w, fmt.Errorf("%s has no neighbour entry for %s", f.Dev, f.Hops[0].Via)
	}
	dst, ok := t.forwards[mac]
	if !ok {
		return w, fmt.Errorf("%s has no forwarding entry for %s", f.Dev, mac)
	}
	w = Wrapped{MAC: mac, VTEP: dst, VNI: t.VNI, Port: t.Port, MTU: t.MTU}
	if f.MTU > 0 {
		w.MTU = f.MTU
	}
	return w, nil
}
