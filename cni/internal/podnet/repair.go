package podnet

import (
	"errors"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/ipam"
	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/internal/failpoint"
)

var (
	repairBegun   = failpoint.New("cni.repair.begun")
	repairPending = failpoint.New("cni.repair.pending")
	repairPools   = failpoint.New("cni.repair.pools")
	repairRules   = failpoint.New("cni.repair.rules")
)

// repair makes records, pools, links and the table agree again after a process died in the middle of a change, or
// the machine was restarted. It may die itself, any number of times.
func (n *Network) repair() error {
	// 1. Records of another boot speak of nothing that exists.
	if !n.store.SameBoot() {
		if err := n.store.Wipe(); err != nil {
			return err
		}
	}
	if err := errors.Join(n.store.Begin(), repairBegun.Hit()); err != nil {
		return err
	}
	// 2. An attachment that was never finished was never reported: take it off.
	records, damaged, err := n.store.List()
	if err != nil {
		return err
	}
	for _, link := range damaged {
		n.remark("the record of link %s was damaged and is in quarantine; its address stays reserved while the link lives", link)
	}
	for _, r := range records {
		if !r.Pending {
			continue
		}
		if err := n.undo(r); err != nil { // one that cannot be undone must not stop all others; its DEL tries again
			n.remark("the unfinished attachment of container %s cannot be taken off: %v", r.ContainerID, err)
			continue
		}
		if err := errors.Join(n.store.Remove(r.Name()), repairPending.Hit()); err != nil {
			return err
		}
	}
	// 3. Pools and table from what is left.
	if err := errors.Join(n.resetPools(), repairPools.Hit()); err != nil {
		return err
	}
	if err := errors.Join(n.restore(), repairRules.Hit()); err != nil {
		return err
	}
	return n.store.End()
}

// undo takes back what an unfinished ADD may have made besides pools and table, which are made again as a whole.
func (n *Network) undo(rec *state.Record) error {
	bad := []error{n.deleteLinks(rec)}
	if rec.IPTables != nil {
		bad = append(bad, iptables.Remove(rec.IPTables))
	}
	if rec.Type != "" {
		bad = append(bad, n.releaseAll(rec))
	}
	return errors.Join(bad...)
}

// resetPools makes every pool that is known agree with the records and with what was taken since.
func (n *Network) resetPools(taken ...netip.Addr) error {
	addrs, err := n.addrsInUse()
	if err != nil {
		return err
	}
	addrs = append(addrs, taken...)
	nets, err := n.store.Networks()
	if err != nil {
		return err
	}
	subnets := n.conf.Pools()
	for _, nw := range nets {
		subnets = append(subnets, nw.Own()...)
	}
	for _, s := range subnets {
		p, err := n.pool(s)
		if err != nil {
			return err
		}
		err = p.Reset(addrs, now())
		if errors.Is(err, ipam.ErrDamaged) {
			p, err = n.remakePool(s)
			n.pools[s] = p
		}
		if err != nil {
			return err
		}
	}
	return n.flush()
}

// addrsInUse are the addresses of all records and of all routes that this plugin made: a record may be lost while
// its link lives.
func (n *Network) addrsInUse() ([]netip.Addr, error) {
	records, _, err := n.store.List()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, r := range records {
		if r.Type == "" {
			out = append(out, r.Addrs()...)
		}
	}
	for _, v6 := range []bool{false, true} {
		routes, err := n.ownRoutes(v6)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			out = append(out, r.Dst.Addr())
		}
	}
	return out, nil
}

func (n *Network) ownRoutes(v6 bool) ([]rtnl.Route, error) {
	ms, err := n.route.Query("list routes", rtnl.DumpRoutes(v6, rtnl.Protocol))
	if err != nil {
		return nil, err
	}
	return parseRoutes(ms), nil
}

func parseRoutes(ms []nlwire.Message) []rtnl.Route {
	var out []rtnl.Route
	for _, m := range ms {
		if r, ok := rtnl.ParseRoute(m); ok && r.Protocol == rtnl.Protocol && r.Dst.IsSingleIP() {
			out = append(out, r)
		}
	}
	return out
}

// release lets an address of any pool rest.
func (n *Network) release(a netip.Addr) error {
	nets, err := n.store.Networks()
	if err != nil {
		return err
	}
	subnets := n.conf.Pools()
	for _, nw := range nets {
		subnets = append(subnets, nw.Own()...)
	}
	for _, s := range subnets {
		if !s.Contains(a) {
			continue
		}
		p, err := n.pool(s)
		if err != nil {
			return err
		}
		err = p.Release(a, now())
		if errors.Is(err, ipam.ErrDamaged) {
			p, err = n.remakePool(s)
			n.pools[s] = p
		}
		return err
	}
	return nil
}
