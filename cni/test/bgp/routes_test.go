package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// routeCells are about what is said of routes, and what is made of it.
func routeCells() []cell {
	return []cell{
		{name: "communities", run: communities},
		{name: "MED, local preference, prepend", run: metrics},
		{name: "default filters", run: defaultFilters},
		{name: "filters by rule", run: ruleFilters},
		{name: "route reflector: we reflect", run: weReflect},
		{name: "route reflector: we are clients", run: weAreClients, slow: true},
		{name: "add-path, received", run: addPathReceived, slow: true},
		{name: "add-path, sent", run: addPathSent, slow: true},
		{name: "ECMP", run: ecmp},
		{name: "route refresh", run: routeRefresh},
		{
			name:   "enhanced route refresh (RFC 7313)",
			cannot: map[string]string{"BIRD": "gobgp v4.8.0 does not offer the capability", "FRR": "gobgp v4.8.0 does not offer the capability"},
		},
		{name: "max-prefix", run: maxPrefix},
		{name: "reload flaps nothing", run: reload},
	}
}

func communities(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.routes = append(p.far.routes,
		farRoute{prefix: "10.244.3.0/24", community: "64513:7"}, farRoute{prefix: "10.244.4.0/24", large: "64513:1:2"}, farRoute{prefix: "10.244.5.0/24", community: "64513:8", large: "64513:1:3"})
	p.config.Announcements[0].Communities = []berth.Community{64512<<16 | 9, 64512<<16 | 10}
	p.config.Announcements[0].LargeCommunities = []berth.LargeCommunity{{4200000000, 1, 2}}
	p.config.Peers[0].Import = []berth.Rule{
		{Action: berth.Reject, Communities: []berth.Community{64513<<16 | 7}},
		{Action: berth.Reject, LargeCommunities: []berth.LargeCommunity{{64513, 1, 2}}},
	}
	p.config.Peers[0].Export = []berth.Rule{{Action: berth.Accept, Communities: []berth.Community{64512<<16 | 9}, Set: berth.Attributes{Communities: []berth.Community{64512<<16 | 11}}}}
	u := p.start(t)
	p.exchanged(t, u)
	eventually(t, 5*time.Second, u.has("10.244.5.0/24", p.at.v4))
	for _, x := range []string{"10.244.3.0/24", "10.244.4.0/24"} {
		if err := u.lacks(x)(); err != nil {
			t.Errorf("its community is rejected: %v", err)
		}
	}
	eventually(t, 5*time.Second, hasFar(d, "10.244.1.0/24", func(l learned) error {
		return errors.Join(want("communities", l.community, "64512:9 64512:10 64512:11"), want("large communities", l.large, "4200000000:1:2"))
	}))
}

func metrics(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	med := uint32(77)
	p.config.Announcements[0].MED, p.config.Announcements[0].Prepend = &med, 2
	p.exchanged(t, p.start(t))
	eventually(t, 5*time.Second, hasFar(d, "10.244.1.0/24", func(l learned) error {
		return errors.Join(want("MED", l.med, 77), want("AS path", l.asPath, "64512 64512 64512"))
	}))
	// Within one AS: the local preference is told, and the path stays empty.
	q := newPair(t, newLike(d), 64512, false)
	pref := uint32(250)
	q.config.Announcements[0].LocalPref, q.config.Announcements[0].MED, q.config.Announcements[0].Prepend = &pref, &med, 2
	q.exchanged(t, q.start(t))
	eventually(t, 5*time.Second, hasFar(q.d, "10.244.1.0/24", func(l learned) error {
		return errors.Join(want("local preference", l.localPref, 250), want("MED", l.med, 77), want("AS path", strings.TrimSpace(l.asPath), emptyPath(q.d)))
	}))
}

func emptyPath(d speakerDaemon) string {
	if d.name() == "FRR" {
		return "Local"
	}
	return ""
}

// newLike is another daemon of the same kind.
func newLike(d speakerDaemon) speakerDaemon {
	if d.name() == "FRR" {
		return &frr{}
	}
	return &bird{}
}

func defaultFilters(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	for _, x := range []string{"0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/24", "10.96.0.0/12", "10.244.0.0/15"} {
		p.far.routes = append(p.far.routes, farRoute{prefix: x})
	}
	p.far.routes = append(p.far.routes, farRoute{prefix: "10.244.77.7/32"})
	p.config.Announcements = append(p.config.Announcements, berth.Announcement{Prefix: pfx("198.51.100.0/24")})
	u := p.start(t)
	p.exchanged(t, u)
	eventually(t, 5*time.Second, u.has("10.244.77.7/32", p.at.v4))
	if got := u.Routes(); len(got) != 2 {
		t.Errorf("more than what is in the pools: %v", got)
	}
	if n := u.Status().Refused; n != 0 {
		t.Errorf("the child let %d routes through that the parent had to refuse", n)
	}
	if err := lacksFar(d, "198.51.100.0/24")(); err != nil {
		t.Errorf("an announcement outside of the pools: %v", err)
	}
}

func ruleFilters(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.routes = append(p.far.routes, farRoute{prefix: "0.0.0.0/0"}, farRoute{prefix: "192.0.2.0/24"}, farRoute{prefix: "192.0.2.128/25"}, farRoute{prefix: "10.244.9.0/24"})
	exact := func(s string) []berth.PrefixRange {
		return []berth.PrefixRange{{Prefix: pfx(s), Min: pfx(s).Bits(), Max: max(1, pfx(s).Bits())}}
	}
	p.config.Peers[0].Import = []berth.Rule{
		{Action: berth.Reject, Prefixes: exact("10.244.9.0/24")},
		{Action: berth.Accept, Prefixes: append(exact("192.0.2.0/24"), exact("0.0.0.0/0")...)},
	}
	p.config.Peers[0].Export = []berth.Rule{{Action: berth.Reject, Prefixes: []berth.PrefixRange{{Prefix: pfx("10.244.200.0/22")}}}}
	p.config.Announcements = append(p.config.Announcements, berth.Announcement{Prefix: pfx("10.244.201.0/24")})
	u := p.start(t)
	p.exchanged(t, u)
	eventually(t, 5*time.Second, u.has("192.0.2.0/24", p.at.v4))
	eventually(t, 5*time.Second, u.has("0.0.0.0/0", p.at.v4))
	for _, x := range []string{"192.0.2.128/25", "10.244.9.0/24"} {
		if err := u.lacks(x)(); err != nil {
			t.Error(err)
		}
	}
	if err := lacksFar(d, "10.244.201.0/24")(); err != nil {
		t.Errorf("the export rule rejects it: %v", err)
	}
}

// star is one speaker of ours in the middle, with far ones around it, all in AS 64512.
func weReflect(t *testing.T, d speakerDaemon) {
	l := newLab(t, 3)
	e := newLike(d)
	c := ourConfig(l[0])
	c.ClusterID = ip("203.0.113.9")
	for i, x := range []speakerDaemon{d, e} {
		n := l[i+1]
		x.start(t, far{at: n, asn: 64512, sessions: []farSession{{us: l[0].v4, local: n.v4, asn: 64512, families: []berth.Family{berth.IPv4}}}, routes: []farRoute{{prefix: fmt.Sprintf("10.244.%d.0/24", n.n)}}})
		c.Peers = append(c.Peers, berth.Peer{Address: n.v4, ASN: 64512, ReflectorClient: true, ConnectRetry: time.Second})
	}
	startUs(t, l[0], c, nil)
	for i, x := range []speakerDaemon{d, e} {
		other := l[2-i]
		eventually(t, 25*time.Second, hasFar(x, fmt.Sprintf("10.244.%d.0/24", other.n), func(r learned) error {
			return errors.Join(
				want("next hop", r.nextHop, other.v4), want("cluster list", r.clusters, "203.0.113.9"),
				want("originator", r.originator, fmt.Sprintf("198.51.100.%d", other.n)))
		}))
	}
}

func weAreClients(t *testing.T, d speakerDaemon) {
	l := newLab(t, 3)
	f := far{at: l[2], asn: 64512}
	var all []*us
	for _, n := range l[:2] {
		f.sessions = append(f.sessions, farSession{us: n.v4, local: l[2].v4, asn: 64512, families: []berth.Family{berth.IPv4}, rrClient: true, cluster: "203.0.113.7"})
		all = append(all, startUs(t, n, ourConfig(n, berth.Peer{Address: l[2].v4, ASN: 64512, ConnectRetry: time.Second}), nil))
	}
	d.start(t, f)
	eventually(t, 25*time.Second, all[0].has("10.244.2.0/24", l[1].v4))
	eventually(t, 25*time.Second, all[1].has("10.244.1.0/24", l[0].v4))
}

// sources are two more far speakers that originate the same prefix to one that is a hub of AS 64512.
func sources(t *testing.T, hub *node, at ...*node) {
	t.Helper()
	for _, n := range at {
		(&bird{}).start(t, far{at: n, asn: 64512, sessions: []farSession{{us: hub.v4, local: n.v4, asn: 64512, families: []berth.Family{berth.IPv4}}}, routes: []farRoute{{prefix: "10.244.99.0/24"}}})
	}
}

func addPathReceived(t *testing.T, d speakerDaemon) {
	l := newLab(t, 4)
	f := far{at: l[1], asn: 64512}
	for _, n := range []*node{l[2], l[3], l[0]} {
		s := farSession{us: n.v4, local: l[1].v4, asn: 64512, families: []berth.Family{berth.IPv4}, rrClient: true}
		if n == l[0] {
			s.addPaths = "tx"
		}
		f.sessions = append(f.sessions, s)
	}
	sources(t, l[1], l[2], l[3])
	d.start(t, f)
	u := startUs(t, l[0], ourConfig(l[0], berth.Peer{Address: l[1].v4, ASN: 64512, ConnectRetry: time.Second, AddPathsReceive: true}), nil)
	eventually(t, 25*time.Second, u.has("10.244.99.0/24", l[2].v4, l[3].v4))
}

func addPathSent(t *testing.T, d speakerDaemon) {
	l := newLab(t, 4)
	d.start(t, far{at: l[1], asn: 64512, sessions: []farSession{{us: l[0].v4, local: l[1].v4, asn: 64512, families: []berth.Family{berth.IPv4}, addPaths: "rx"}}})
	sources(t, l[0], l[2], l[3])
	c := ourConfig(l[0])
	for _, n := range l[1:] {
		p := berth.Peer{Address: n.v4, ASN: 64512, ReflectorClient: true, ConnectRetry: time.Second}
		if n == l[1] {
			p.AddPathsSend = 4
		}
		c.Peers = append(c.Peers, p)
	}
	startUs(t, l[0], c, nil)
	eventually(t, 25*time.Second, hasFar(d, "10.244.99.0/24", func(r learned) error { return want("paths", r.paths, 2) }))
}

func ecmp(t *testing.T, d speakerDaemon) {
	l := newLab(t, 3)
	c := ourConfig(l[0])
	both := []speakerDaemon{d, newLike(d)}
	for i, x := range both {
		n := l[i+1]
		x.start(t, far{at: n, asn: 64513, sessions: []farSession{{us: l[0].v4, local: n.v4, asn: 64512, families: []berth.Family{berth.IPv4}}}, routes: []farRoute{{prefix: "10.244.99.0/24"}}})
		c.Peers = append(c.Peers, berth.Peer{Address: n.v4, ASN: 64513, ConnectRetry: time.Second})
	}
	u := startUs(t, l[0], c, nil)
	eventually(t, 25*time.Second, u.has("10.244.99.0/24", l[1].v4, l[2].v4))
	for _, limit := range []int{1, 0} {
		c.MaxPaths = limit
		if err := u.Set(c); err != nil {
			t.Fatal(err)
		}
		hops := []netip.Addr{l[1].v4, l[2].v4}
		if limit > 0 {
			hops = hops[:limit]
		}
		eventually(t, 5*time.Second, u.has("10.244.99.0/24", hops...))
	}
	both[0].crash()
	eventually(t, 15*time.Second, u.has("10.244.99.0/24", l[2].v4))
}

func routeRefresh(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	u := p.start(t)
	p.exchanged(t, u)
	_, epoch, err := d.established(p.us.v4)
	if err != nil {
		t.Fatal(err)
	}
	updates := func() string {
		out, err := d.ask(map[string]string{"BIRD": "show protocols all us0", "FRR": "show bgp neighbors " + p.us.v4.String()}[d.name()])
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(out, "\n") {
			if f := strings.Fields(line); len(f) > 2 && (f[0] == "Import" && f[1] == "updates:" || f[0] == "Updates:") {
				return line
			}
		}
		t.Fatalf("no count of updates in %s", out)
		return ""
	}
	before := updates()
	if out, err := d.ask(map[string]string{"BIRD": "reload in us0", "FRR": "clear bgp ipv4 unicast " + p.us.v4.String() + " in"}[d.name()]); err != nil {
		t.Fatal(err, out)
	}
	eventually(t, 5*time.Second, func() error {
		if updates() == before {
			return fmt.Errorf("a refresh was asked for, and no update came: %s", before)
		}
		return nil
	})
	if _, now, err := d.established(p.us.v4); err != nil || now != epoch {
		t.Errorf("the session flapped: %q, %q (%v)", epoch, now, err)
	}
}

func maxPrefix(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	for i := range 10 {
		p.far.routes = append(p.far.routes, farRoute{prefix: fmt.Sprintf("10.244.%d.0/24", 100+i)})
	}
	p.config.Peers[0].MaxPrefixes = 5
	u := p.start(t)
	eventually(t, 15*time.Second, func() error { return want("state", u.peer(p.at.v4).State, berth.SessionOverLimit) })
	eventually(t, 5*time.Second, func() error { return want("routes", len(u.Routes()), 0) })
	c := p.config
	c.Peers = []berth.Peer{c.Peers[0]}
	c.Peers[0].MaxPrefixes = 50
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	p.exchanged(t, u)
	eventually(t, 5*time.Second, func() error { return want("routes", len(u.Routes()), 11) })
}

// reload changes everything that is no term of the session, and the session must not notice.
func reload(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.routes = append(p.far.routes, farRoute{prefix: "10.244.9.0/24"}, farRoute{prefix: "192.0.2.0/24"})
	u := p.start(t)
	p.exchanged(t, u)
	_, epoch, err := d.established(p.us.v4)
	if err != nil {
		t.Fatal(err)
	}
	flaps := u.peer(p.at.v4).Flaps
	c := p.config
	c.Pools = append(c.Pools, pfx("192.0.2.0/24"))
	c.Announcements = append(c.Announcements[1:], berth.Announcement{Prefix: pfx("10.244.50.0/24"), Attributes: berth.Attributes{Communities: []berth.Community{64512<<16 | 1}}})
	c.Peers = []berth.Peer{c.Peers[0], {Address: ip("10.0.0.77"), ASN: 64777}}
	c.Peers[0].Name, c.Peers[0].MaxPrefixes, c.Peers[0].ConnectRetry = "renamed", 7, 5*time.Second
	c.Peers[0].Import = []berth.Rule{{Action: berth.Reject, Prefixes: []berth.PrefixRange{{Prefix: pfx("10.244.9.0/24")}}}}
	c.MaxPaths = 2
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, u.has("192.0.2.0/24", p.at.v4))
	eventually(t, 5*time.Second, u.lacks("10.244.9.0/24"))
	eventually(t, 5*time.Second, hasFar(d, "10.244.50.0/24", func(l learned) error { return want("community", l.community, "64512:1") }))
	eventually(t, 5*time.Second, lacksFar(d, "10.244.1.0/24"))
	if err := u.Set(p.config); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, u.has("10.244.9.0/24", p.at.v4))
	eventually(t, 5*time.Second, hasFar(d, "10.244.1.0/24", nil))
	eventually(t, 5*time.Second, u.lacks("192.0.2.0/24"))
	if up, now, err := d.established(p.us.v4); err != nil || !up || now != epoch {
		t.Errorf("the session flapped: %q, %q (%v)", epoch, now, err)
	}
	if s := u.peer(p.at.v4); s.Flaps != flaps || u.Status().Restarts != 0 {
		t.Errorf("the session or the child ended: %+v %+v", s, u.Status())
	}
}
