package dropin

import (
	"errors"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
)

// check says whether a bridge's attachment is as prevResult says.
func (b *bridge) check(c *Call) error {
	return c.checkInterface(b.ipam, func(r *spec.Result, host rtnl.Link) error {
		br, found, err := c.net.Link(b.Bridge)
		if err != nil || !found || br.Kind != "bridge" {
			return errors.Join(err, mismatch("bridge %s is missing", b.Bridge))
		}
		for _, i := range r.Interfaces {
			if i.Name == b.Bridge && i.Sandbox == "" && i.MAC != "" && i.MAC != br.MAC.String() {
				return mismatch("bridge %s has MAC %s, prevResult says %s", b.Bridge, br.MAC, i.MAC)
			}
		}
		if br.Promisc != b.PromiscMode {
			return mismatch("bridge %s: promiscuous mode is %v, promiscMode is %v", b.Bridge, br.Promisc, b.PromiscMode)
		}
		if host.Master != br.Index {
			return mismatch("host link %s is no port of bridge %s", host.Name, b.Bridge)
		}
		return nil
	})
}

// check says whether a point-to-point attachment is as prevResult says.
func (p *ptp) check(c *Call) error {
	return c.checkInterface(p.ipam, func(*spec.Result, rtnl.Link) error { return nil })
}

// checkInterface is CHECK of the types that make an interface: the addresses' reservation, both ends, what is on the
// container's, the rules, and what the type adds.
func (c *Call) checkInterface(i *ipam, more func(*spec.Result, rtnl.Link) error) error {
	r, err := c.chained()
	if err != nil {
		return err
	}
	ns, err := c.openNetns()
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	if i != nil && i.foreign != "" {
		if err := i.check(c); err != nil {
			return err
		}
		i = nil
	}
	for _, in := range r.Interfaces {
		if in.Name == c.IfName && in.Sandbox != "" && in.Sandbox != c.Netns {
			return mismatch("prevResult has interface %s in %s, CNI_NETNS is %s", c.IfName, in.Sandbox, c.Netns)
		}
	}
	return c.with(func() error {
		if err := i.check(c); err != nil {
			return err
		}
		rec, err := c.net.Find(c.Type, c.Attachment)
		if err == nil && rec != nil {
			err = c.net.CheckRules(rec)
		}
		if err != nil {
			return err
		}
		host, err := c.hostEnd(ns)
		if err != nil {
			return err
		}
		if !host.Up {
			return mismatch("host link %s is down", host.Name)
		}
		return errors.Join(more(r, host), c.checkInside(ns, r))
	})
}

// checkInside compares the container's interface with prevResult: its MAC, addresses and routes.
func (c *Call) checkInside(ns *netns.NS, r *spec.Result) error {
	return inNetns(ns, func(conn *nlwire.Conn) error {
		l, err := lookIn(c.IfName)
		if err != nil {
			return err
		}
		var bad []error
		for _, i := range r.Interfaces {
			if i.Name == c.IfName && i.Sandbox != "" && i.MAC != "" && i.MAC != l.MAC.String() {
				bad = append(bad, mismatch("interface %s has MAC %s, prevResult says %s", c.IfName, l.MAC, i.MAC))
			}
		}
		ms, err := conn.Query("list addresses", rtnl.DumpAddrs())
		if err != nil {
			return err
		}
		have := map[netip.Prefix]bool{}
		for _, m := range ms {
			if index, p, ok := rtnl.ParsePrefix(m); ok && index == l.Index {
				have[p] = true
			}
		}
		for _, ip := range r.IPs {
			if c.onInterface(r, ip) && !have[ip.Address] {
				bad = append(bad, mismatch("interface %s lacks address %s", c.IfName, ip.Address))
			}
		}
		return errors.Join(append(bad, checkRoutes(conn, r))...)
	})
}

// onInterface says whether prevResult has the address on the interface that CHECK is for.
func (c *Call) onInterface(r *spec.Result, ip spec.IP) bool {
	i := ip.Interface
	return i < 0 || i >= len(r.Interfaces) || r.Interfaces[i].Name == c.IfName && r.Interfaces[i].Sandbox != ""
}

func checkRoutes(conn *nlwire.Conn, r *spec.Result) error {
	have := map[netip.Prefix][]rtnl.Route{}
	for _, v6 := range []bool{false, true} {
		ms, err := conn.Query("list routes", rtnl.DumpAllRoutes(v6))
		if err != nil {
			return err
		}
		for _, m := range ms {
			if rt, ok := rtnl.ParseRoute(m); ok {
				have[rt.Dst] = append(have[rt.Dst], rt)
			}
		}
	}
	var bad []error
next:
	for _, want := range r.Routes {
		for _, rt := range have[want.Dst] {
			if (!want.GW.IsValid() || want.GW == rt.Gateway) && (want.Table == nil || *want.Table == rt.Table) {
				continue next
			}
		}
		bad = append(bad, mismatch("the container lacks the route to %s via %v", want.Dst, want.GW))
	}
	return errors.Join(bad...)
}
