package speaker

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func config() bgp.Config {
	return bgp.Config{
		ASN: 64512, RouterID: ip("192.0.2.1"), Pools: []netip.Prefix{pfx("10.244.0.0/16")},
		Peers:   []bgp.Peer{{Address: ip("10.0.0.2"), ASN: 64512}, {Address: ip("10.0.0.3"), ASN: 64512}},
		Restart: bgp.Restart{Time: 60 * time.Second}, MaxPaths: 2,
	}
}

func route(p string, peers ...string) bgp.Route {
	r := bgp.Route{Prefix: pfx(p)}
	for _, x := range peers {
		r.Paths = append(r.Paths, bgp.Path{NextHop: ip(x), Peer: ip(x), Kind: bgp.Internal})
	}
	return r
}

// show is the table in a line: "10.244.1.0/24=2,3* …", peers by their last byte, stale ones with a star.
func show(t *table) string {
	var all []string
	for _, r := range t.routes() {
		var ps []string
		for _, p := range r.Paths {
			s := p.Peer.String()
			s = s[strings.LastIndexByte(s, '.')+1:]
			if p.Stale {
				s += "*"
			}
			ps = append(ps, s)
		}
		all = append(all, r.Prefix.String()+"="+strings.Join(ps, ","))
	}
	return strings.Join(all, " ")
}

func TestTable(t *testing.T) {
	now := time.Unix(1000, 0)
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	changed := func(r ...bgp.Route) func(*table) { return func(x *table) { x.apply(&channel.Routes{Changed: r}) } }
	gone := func(p string) func(*table) {
		return func(x *table) { x.apply(&channel.Routes{Withdrawn: []netip.Prefix{pfx(p)}}) }
	}
	dies := func(s int) func(*table) { return func(x *table) { x.strand(at(s)) } }
	waits := func(s int) func(*table) { return func(x *table) { x.expire(at(s)) } }
	synced := func(p string) func(*table) { return func(x *table) { x.synced([]netip.Addr{ip(p)}) } }
	set := func(change func(*bgp.Config)) func(*table) {
		return func(x *table) { c := config(); change(&c); x.configure(c, now) }
	}
	one, two := route("10.244.1.0/24", "10.0.0.2"), route("10.244.2.0/24", "10.0.0.2", "10.0.0.3")
	for _, c := range []struct {
		name  string
		steps []func(*table)
		want  string
	}{
		{"learned", []func(*table){changed(one, two)}, "10.244.1.0/24=2 10.244.2.0/24=2,3"},
		{"withdrawn", []func(*table){changed(one, two), gone("10.244.1.0/24")}, "10.244.2.0/24=2,3"},
		{"the child dies", []func(*table){changed(one), dies(0)}, "10.244.1.0/24=2*"},
		{"and another learns the same", []func(*table){changed(one), dies(0), changed(one)}, "10.244.1.0/24=2"},
		{"or that it is gone", []func(*table){changed(one), dies(0), gone("10.244.1.0/24")}, ""},
		{"or is silent about it, and the peer has said all", []func(*table){changed(one, two), dies(0), synced("10.0.0.2")}, "10.244.2.0/24=3*"},
		{"or the time is over", []func(*table){changed(one), dies(0), waits(59)}, "10.244.1.0/24=2*"},
		{"", []func(*table){changed(one), dies(0), waits(60)}, ""},
		{"children that die again and again do not prolong it", []func(*table){changed(one), dies(0), dies(30), dies(50), waits(60)}, ""},
		{"a peer is removed from the configuration", []func(*table){changed(one, two), set(func(c *bgp.Config) { c.Peers = c.Peers[1:] })}, "10.244.2.0/24=3"},
		{"after its child died", []func(*table){changed(one, two), dies(0), set(func(c *bgp.Config) { c.Peers = c.Peers[1:] })}, "10.244.2.0/24=3*"},
		{"a pool is removed", []func(*table){changed(one), set(func(c *bgp.Config) { c.Pools = nil })}, ""},
		{"a pool is removed and comes back, and the child has nothing to say of it", []func(*table){changed(one), set(func(c *bgp.Config) { c.Pools = nil }), set(func(*bgp.Config) {})}, "10.244.1.0/24=2"},
		{"all of BGP is", []func(*table){changed(one), func(x *table) { x.configure(bgp.Config{}, now) }, set(func(*bgp.Config) {})}, "10.244.1.0/24=2"},
		{"fewer paths, and more again", []func(*table){changed(two), set(func(c *bgp.Config) { c.MaxPaths = 1 }), set(func(*bgp.Config) {})}, "10.244.2.0/24=2,3"},
		{"outside of the pools", []func(*table){changed(route("192.0.2.0/24", "10.0.0.2"), route("0.0.0.0/0", "10.0.0.2"))}, ""},
		{"from a stranger", []func(*table){changed(route("10.244.1.0/24", "10.0.0.9", "10.0.0.3"))}, "10.244.1.0/24=3"},
		{"by nobody", []func(*table){changed(bgp.Route{Prefix: one.Prefix, Paths: []bgp.Path{{NextHop: ip("127.0.0.1"), Peer: ip("10.0.0.2"), Kind: bgp.Internal}}})}, ""},
		{"too many paths", []func(*table){set(func(c *bgp.Config) { c.MaxPaths = 1 }), changed(two)}, "10.244.2.0/24=2"},
		{"what was live, and may no longer be, is not kept", []func(*table){changed(one), changed(bgp.Route{Prefix: one.Prefix, Paths: route("10.244.1.0/24", "10.0.0.9").Paths})}, ""},
	} {
		x := newTable()
		x.configure(config(), now)
		for _, step := range c.steps {
			step(x)
		}
		if got := show(x); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestTakenOver is about routes of an agent before this one.
func TestTakenOver(t *testing.T) {
	x := newTable()
	x.keep([]bgp.Route{route("10.244.1.0/24", "10.0.0.2"), route("192.0.2.0/24", "10.0.0.2")})
	if x.expire(time.Unix(1<<40, 0)) {
		t.Error("they expire before anyone said what BGP shall be")
	}
	x.configure(config(), time.Unix(0, 0))
	if got := show(x); got != "10.244.1.0/24=2*" {
		t.Errorf("%q", got)
	}
	x.expire(time.Unix(60, 0))
	if got := show(x); got != "" {
		t.Errorf("after the restart time: %q", got)
	}
}

func TestTableIsBounded(t *testing.T) {
	x := newTable()
	c := config()
	c.Pools = []netip.Prefix{pfx("fd00::/16")}
	x.configure(c, time.Unix(0, 0))
	var a [16]byte
	a[0] = 0xfd
	for i := range maxRoutes + 10 {
		a[5], a[6], a[7] = byte(i>>16), byte(i>>8), byte(i)
		r := bgp.Route{Prefix: netip.PrefixFrom(netip.AddrFrom16(a), 64), Paths: []bgp.Path{{NextHop: ip("fd00::2"), Peer: ip("10.0.0.2"), Kind: bgp.Internal}}}
		x.apply(&channel.Routes{Changed: []bgp.Route{r}})
	}
	if len(x.live) != maxRoutes || x.refused != 10 {
		t.Errorf("%d routes, %d refused", len(x.live), x.refused)
	}
}

func TestRoutesAreTheCallers(t *testing.T) {
	x := newTable()
	x.configure(config(), time.Unix(0, 0))
	x.apply(&channel.Routes{Changed: []bgp.Route{route("10.244.1.0/24", "10.0.0.2")}})
	before := fmt.Sprint(x.routes())
	x.strand(time.Unix(0, 0))
	if x.routes()[0].Paths[0].Stale == false || strings.Contains(before, "true") {
		t.Error("strand changed what was handed out")
	}
}
