package speaker

import (
	"net/netip"
	"slices"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

// maxRoutes bounds what one child can make the agent hold and put into the kernel, whatever its peers' limits are.
const maxRoutes = 500_000

// withoutRestart is how long stale routes stay where graceful restart is off: time for one new child.
const withoutRestart = 10 * time.Second

// table is what is known of routes: live, from the child that runs, and kept, from children before it. It is pure but
// for the times it is given.
//
// live is what is admitted of reported. The whole report is held, because a configuration that admits less may be
// followed by one that admits it again before the child has heard of either: then the child has nothing to say.
type table struct {
	config   bgp.Config
	reported map[netip.Prefix]bgp.Route
	live     map[netip.Prefix]bgp.Route
	kept     map[netip.Prefix]keptRoute
	refused  uint64
}

type keptRoute struct {
	route bgp.Route
	until time.Time // zero: counts from the first configuration
}

func newTable() *table {
	return &table{reported: map[netip.Prefix]bgp.Route{}, live: map[netip.Prefix]bgp.Route{}, kept: map[netip.Prefix]keptRoute{}}
}

// keep takes over what an earlier agent left.
func (t *table) keep(routes []bgp.Route) {
	for _, r := range routes {
		t.kept[r.Prefix] = keptRoute{route: stale(r)}
	}
}

// configure drops what the new configuration does not admit, and starts the clock of what was taken over.
func (t *table) configure(c bgp.Config, now time.Time) {
	t.config = c
	for p, k := range t.kept {
		k.route.Paths = slices.DeleteFunc(k.route.Paths, func(x bgp.Path) bool { return !c.Admits(x.Peer, p) })
		if k.until.IsZero() {
			k.until = now.Add(t.keepTime())
		}
		t.put(p, k)
	}
	for _, r := range t.reported {
		t.admit(r)
	}
}

func (t *table) keepTime() time.Duration {
	if t.config.Restart.Enabled() {
		return t.config.Restart.Time
	}
	return withoutRestart
}

func (t *table) put(p netip.Prefix, k keptRoute) {
	if len(k.route.Paths) == 0 {
		delete(t.kept, p)
		return
	}
	t.kept[p] = k
}

// apply takes the child's difference in, route by route, and refuses what it may not say.
func (t *table) apply(r *channel.Routes) {
	for _, p := range r.Withdrawn {
		delete(t.reported, p)
		delete(t.live, p)
		delete(t.kept, p)
	}
	for _, x := range r.Changed {
		if _, known := t.reported[x.Prefix]; !known && len(t.reported) >= maxRoutes {
			t.refused++
			continue
		}
		t.reported[x.Prefix] = x
		t.refused += uint64(t.admit(x))
	}
}

// admit makes live what of a report is admitted, and counts the paths that are not: those whose peers may not have told
// them, or that no packet can go.
func (t *table) admit(r bgp.Route) (refused int) {
	no := func(p bgp.Path) bool { return !t.config.Admits(p.Peer, r.Prefix) || p.Plausible(r.Prefix) != nil }
	if slices.ContainsFunc(r.Paths, no) {
		n := len(r.Paths)
		r.Paths = slices.DeleteFunc(slices.Clone(r.Paths), no)
		refused = n - len(r.Paths)
	}
	r.Paths = r.Paths[:min(len(r.Paths), t.config.Paths())]
	if len(r.Paths) == 0 {
		delete(t.live, r.Prefix)
		return refused
	}
	t.live[r.Prefix] = r
	delete(t.kept, r.Prefix)
	return refused
}

// synced drops what was kept of peers that have said all they know.
func (t *table) synced(peers []netip.Addr) {
	for p, k := range t.kept {
		k.route.Paths = slices.DeleteFunc(k.route.Paths, func(x bgp.Path) bool { return slices.Contains(peers, x.Peer) })
		t.put(p, k)
	}
}

// strand makes all that is live stale: its child is gone.
func (t *table) strand(now time.Time) {
	for p, r := range t.live {
		t.kept[p] = keptRoute{route: stale(r), until: now.Add(t.keepTime())}
	}
	clear(t.live)
	clear(t.reported)
}

// expire drops what was kept for long enough, and says whether there was any.
func (t *table) expire(now time.Time) (any bool) {
	for p, k := range t.kept {
		if !k.until.IsZero() && !now.Before(k.until) {
			delete(t.kept, p)
			any = true
		}
	}
	return any
}

func (t *table) routes() []bgp.Route {
	out := make([]bgp.Route, 0, len(t.live)+len(t.kept))
	for _, r := range t.live {
		out = append(out, r)
	}
	for _, k := range t.kept {
		out = append(out, k.route)
	}
	slices.SortFunc(out, func(a, b bgp.Route) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

func stale(r bgp.Route) bgp.Route {
	r.Paths = slices.Clone(r.Paths)
	for i := range r.Paths {
		r.Paths[i].Stale = true
	}
	return r
}
