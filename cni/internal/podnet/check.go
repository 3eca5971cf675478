package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/proto/errs"
	"golang.org/x/sys/unix"
)

// Check says whether an attachment is as ADD left it: record, reservation, both ends, addresses, routes and
// table. It changes nothing. The error joins everything that is wrong.
func (n *Network) Check(a Attachment) error {
	link := state.LinkName(n.conf.Name, a.ContainerID, a.IfName)
	rec, err := n.store.Load(link)
	if err != nil {
		return fmt.Errorf("container %s, interface %s: %w", a.ContainerID, a.IfName, err)
	}
	ns, err := OpenForeign(a.Netns)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	bad := []error{n.checkPools(rec), n.CheckRules(rec), n.checkLimits(rec)}
	host, found, err := n.link(link)
	switch {
	case err != nil:
		bad = append(bad, err)
	case !found:
		bad = append(bad, wrong("host link %s is missing", link))
	default:
		if !host.Up {
			bad = append(bad, wrong("host link %s is down", link))
		}
		bad = append(bad, n.checkHostRoutes(rec, host.Index), ns.Do(func() error { return checkPod(rec, host.Peer) }))
	}
	return errors.Join(bad...)
}

func wrong(format string, args ...any) error { return errs.FailedPrecondition.Errorf(format, args...) }

func (n *Network) checkPools(rec *state.Record) error {
	var bad []error
	for _, a := range rec.Addrs() {
		for _, s := range n.conf.Pools() {
			if !s.Contains(a) {
				continue
			}
			p, err := n.pool(s)
			if err != nil {
				return err
			}
			if ok, err := p.Taken(a); err != nil || !ok {
				bad = append(bad, errors.Join(err, wrong("address %s is not reserved in pool %s", a, s)))
			}
		}
	}
	return errors.Join(bad...)
}

func (n *Network) checkTable(rec *state.Record) error {
	var bad []error
	for _, e := range ruleset.Elements(rec.Pod) {
		ok, err := n.nft.Has(ruleset.Table(), e)
		if err != nil {
			return err
		}
		if !ok {
			bad = append(bad, wrong("table inet %s lacks the attachment's element of set %s", ruleset.Table().Name, e.Set))
		}
	}
	return errors.Join(bad...)
}

func (n *Network) checkHostRoutes(rec *state.Record, index int32) error {
	var bad []error
	for _, a := range rec.Addrs() {
		routes, err := n.ownRoutes(a.Is6())
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(routes, func(r rtnl.Route) bool { return r.Dst.Addr() == a && r.Index == index }) {
			bad = append(bad, wrong("the host has no route to %s by %s", a, rec.Pod.Link))
		}
	}
	return errors.Join(bad...)
}

// checkPod runs in the pod's namespace.
func checkPod(rec *state.Record, index int32) error {
	c, err := nlwire.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing buffered
	ms, err := c.Query("look up link "+rec.IfName, rtnl.GetLink(rec.IfName))
	if err != nil {
		return wrong("container: %w", err)
	}
	l, _ := rtnl.ParseLink(ms[0])
	var bad []error
	if l.Index != index {
		bad = append(bad, wrong("container interface %s is another one than ADD made", rec.IfName))
	}
	if !l.Up {
		bad = append(bad, wrong("container interface %s is down", rec.IfName))
	}
	if l.MAC != rec.Pod.MAC {
		bad = append(bad, wrong("container interface %s has MAC %s, not %s", rec.IfName, l.MAC, rtnl.MAC(rec.Pod.MAC)))
	}
	if ms, err = c.Query("list addresses", rtnl.DumpAddrs()); err != nil {
		return err
	}
	have := map[netip.Addr]bool{}
	for _, m := range ms {
		if i, a, ok := rtnl.ParseAddr(m); ok && i == l.Index {
			have[a] = true
		}
	}
	for _, a := range rec.Addrs() {
		if !have[a] {
			bad = append(bad, wrong("container interface %s lacks address %s", rec.IfName, a))
		}
		bad = append(bad, checkDefault(c, a, l.Index))
	}
	return errors.Join(bad...)
}

func checkDefault(c *nlwire.Conn, a netip.Addr, index int32) error {
	ms, err := c.Query("list routes", rtnl.DumpRoutes(a.Is6(), 0))
	if err != nil {
		return err
	}
	for _, m := range ms {
		if r, ok := rtnl.ParseRoute(m); ok && r.Dst == defaultOf(a) && r.Index == index {
			return nil
		}
	}
	return wrong("container lacks the default route for %s", a)
}
