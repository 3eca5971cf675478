package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/overlay"
	"github.com/berth-project/berth/cni/internal/rtnl"
)

// phase is a part of the difference, whose requests depend on nothing of each other.
type phase struct {
	name string
	ops  []nlwire.Op
}

// diffDevices is what is to be done about the devices themselves. A device of the planned name that nobody made for us
// is taken over if it is a VXLAN device with the same identifier and port; else it is somebody else's, and an error.
func diffDevices(plan *overlay.Plan, s *state, ipv6 bool) (phase, error) {
	ph := phase{name: "devices"}
	var errs []error
	for _, l := range s.links {
		if slices.ContainsFunc(plan.Devices, func(d overlay.Device) bool { return d.Name == l.Name }) {
			errs = append(errs, fmt.Errorf("link %s exists and is no VXLAN device", l.Name))
		}
	}
	for _, d := range plan.Devices {
		want := rtnl.VXLAN{Name: d.Name, VNI: d.VNI, Port: d.Port, Local: d.Local, MAC: rtnl.MAC(d.MAC), MTU: d.MTU}
		t := s.tunnels[d.Name]
		switch {
		case t == nil:
			ph.ops = append(ph.ops, rtnl.AddVXLAN(want))
		case t.VNI == d.VNI && t.Port == d.Port && t.Local.Is4() == d.Local.Is4():
			ph.ops = append(ph.ops, t.change(want, ipv6)...)
		case t.alias == Alias:
			ph.ops = append(ph.ops, rtnl.DelLink(t.index), rtnl.AddVXLAN(want))
		default:
			errs = append(errs, fmt.Errorf("link %s exists with identifier %d and port %d, and is not ours", d.Name, t.VNI, t.Port))
		}
	}
	return ph, errors.Join(errs...)
}

// change is what differs of a device. One that is new lacks its alias, and so gets the rest of its settings.
func (t *tunnel) change(want rtnl.VXLAN, ipv6 bool) (ops []nlwire.Op) {
	if t.Local != want.Local || t.Learning {
		ops = append(ops, rtnl.SetVXLANLocal(t.index, want))
	}
	var a rtnl.Attrs
	if t.MAC != want.MAC {
		a.MAC = &want.MAC
	}
	if want.MTU > 0 && t.MTU != want.MTU {
		a.MTU = &want.MTU
	}
	if a.MAC != nil || a.MTU != nil {
		ops = append(ops, rtnl.SetAttrs(t.index, a))
	}
	if t.alias != Alias || !t.up {
		ops = append(ops, rtnl.ConfigureTunnel(t.index, Alias, ipv6), rtnl.SetUp(t.index))
	}
	return ops
}

// diff is everything else, in the order in which it is to be sent: what routes lead to before the routes, and what they
// led to after they are gone. The routes of last resort come first and go last.
func diff(plan *overlay.Plan, s *state) ([]phase, error) {
	neighs := phase{name: "neighbours"}
	gone := phase{name: "removals"}
	planned := map[string]bool{}
	for _, d := range plan.Devices {
		planned[d.Name] = true
		t := s.tunnels[d.Name]
		if t == nil {
			return nil, fmt.Errorf("link %s vanished", d.Name)
		}
		t.diffAddrs(d, &neighs, &gone)
		t.diffNeighs(plan, &neighs, &gone)
		t.diffForwards(plan, &neighs, &gone)
	}
	routes, old, lastOld, err := diffRoutes(plan, s)
	for _, p := range s.foreign {
		old.ops = append(old.ops, rtnl.DelPaths(p))
	}
	for _, name := range slices.Sorted(maps.Keys(s.tunnels)) {
		if t := s.tunnels[name]; t.alias == Alias && !planned[name] {
			gone.ops = append(gone.ops, rtnl.DelLink(t.index))
		}
	}
	gone.ops = append(gone.ops, lastOld...)
	return []phase{neighs, routes, old, gone}, err
}

func (t *tunnel) diffAddrs(d overlay.Device, add, del *phase) {
	want := map[netip.Prefix]bool{}
	for _, a := range d.Addrs {
		want[netip.PrefixFrom(a, a.BitLen())] = true
	}
	for _, p := range sortedPrefixes(want) {
		if !t.addrs[p] {
			add.ops = append(add.ops, rtnl.AddAddr(t.index, p))
		}
	}
	for _, p := range sortedPrefixes(t.addrs) {
		if !want[p] && !p.Addr().IsLinkLocalUnicast() {
			del.ops = append(del.ops, rtnl.DelAddr(t.index, p))
		}
	}
}

func sortedPrefixes(m map[netip.Prefix]bool) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(m), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

func (t *tunnel) diffNeighs(plan *overlay.Plan, add, del *phase) {
	want := map[netip.Addr]bool{}
	for _, n := range plan.Neighs {
		if n.Dev != t.Name {
			continue
		}
		want[n.Addr] = true
		if have, ok := t.neighs[n.Addr]; !ok || have != rtnl.MAC(n.MAC) {
			add.ops = append(add.ops, rtnl.AddNeigh(t.index, n.Addr, rtnl.MAC(n.MAC)))
		}
	}
	for _, have := range []func(func(netip.Addr) bool){addrKeys(t.neighs), addrKeys(t.stray)} {
		for _, a := range slices.SortedFunc(have, netip.Addr.Compare) {
			if !want[a] {
				del.ops = append(del.ops, rtnl.DelNeigh(t.index, a))
			}
		}
	}
}

func addrKeys[V any](m map[netip.Addr]V) func(func(netip.Addr) bool) { return maps.Keys(m) }

func (t *tunnel) diffForwards(plan *overlay.Plan, add, del *phase) {
	want := map[rtnl.MAC]bool{}
	for _, e := range plan.Entries {
		if e.Dev != t.Name {
			continue
		}
		want[rtnl.MAC(e.MAC)] = true
		if have, ok := t.forwards[rtnl.MAC(e.MAC)]; !ok || have != e.Dst {
			add.ops = append(add.ops, rtnl.SetForward(rtnl.Forward{Index: t.index, MAC: rtnl.MAC(e.MAC), Dst: e.Dst}))
		}
	}
	for _, mac := range slices.SortedFunc(maps.Keys(t.forwards), func(a, b rtnl.MAC) int { return slices.Compare(a[:], b[:]) }) {
		if !want[mac] {
			del.ops = append(del.ops, rtnl.DelForward(rtnl.Forward{Index: t.index, MAC: mac, Dst: t.forwards[mac]}))
		}
	}
}

// diffRoutes returns the routes to set and to delete, and those of last resort to delete after everything else.
func diffRoutes(plan *overlay.Plan, s *state) (set, old phase, lastOld []nlwire.Op, err error) {
	set, old = phase{name: "routes"}, phase{name: "old routes"}
	indexes, want := s.indexes(), map[routeKey]bool{}
	var first []nlwire.Op
	var errs []error
	for _, r := range plan.Routes {
		p, err := paths(r, indexes)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		key := routeKey{p.Dst, p.Metric}
		want[key] = true
		have, ok := s.routes[key]
		switch {
		case ok && have.Equal(p):
		case len(p.Hops) == 0:
			first = append(first, rtnl.SetPaths(p))
		default:
			set.ops = append(set.ops, rtnl.SetPaths(p))
		}
	}
	set.ops = append(first, set.ops...)
	keys := slices.SortedFunc(maps.Keys(s.routes), func(a, b routeKey) int {
		return cmp.Or(a.dst.Addr().Compare(b.dst.Addr()), cmp.Compare(a.dst.Bits(), b.dst.Bits()), a.metric-b.metric)
	})
	for _, key := range keys {
		switch p := s.routes[key]; {
		case want[key]:
		case len(p.Hops) == 0:
			lastOld = append(lastOld, rtnl.DelPaths(p))
		default:
			old.ops = append(old.ops, rtnl.DelPaths(p))
		}
	}
	return set, old, lastOld, errors.Join(errs...)
}
