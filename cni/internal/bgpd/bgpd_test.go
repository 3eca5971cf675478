package bgpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"google.golang.org/protobuf/proto"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func config() bgp.Config {
	return bgp.Config{
		ASN: 64512, RouterID: ip("192.0.2.1"), Pools: []netip.Prefix{pfx("10.244.0.0/16"), pfx("fd00::/16"), pfx("0.0.0.0/0")},
		Peers: []bgp.Peer{{Address: ip("10.0.0.2"), ASN: 64512, NextHopSelf: true}, {Address: ip("10.0.0.3"), ASN: 64513}},
	}
}

// show is a policy in lines: what is matched → what is done.
func show(r *api.SetPoliciesRequest, name string) (out []string) {
	sets := map[string]string{}
	for _, s := range r.DefinedSets {
		v := strings.Join(s.List, " ")
		for _, p := range s.Prefixes {
			v += fmt.Sprintf("%s{%d,%d} ", p.IpPrefix, p.MaskLengthMin, p.MaskLengthMax)
		}
		sets[s.Name] = strings.TrimSpace(v)
	}
	for _, p := range r.Policies {
		for _, s := range p.Statements {
			if p.Name != name {
				continue
			}
			var line []string
			for _, m := range []*api.MatchSet{s.Conditions.NeighborSet, s.Conditions.PrefixSet, s.Conditions.CommunitySet, s.Conditions.LargeCommunitySet} {
				if m != nil {
					line = append(line, sets[m.Name])
				}
			}
			if s.Conditions.RouteType == api.Conditions_ROUTE_TYPE_INTERNAL {
				line = append(line, "another node's")
			}
			act := map[api.RouteAction]string{api.RouteAction_ROUTE_ACTION_ACCEPT: "accept", api.RouteAction_ROUTE_ACTION_REJECT: "reject"}[s.Actions.RouteAction]
			if s.Actions.GetNexthop().GetSelf() {
				act += " self"
			}
			if s.Actions.GetNexthop().GetUnchanged() {
				act += " next hop kept"
			}
			if m := s.Actions.GetMed(); m != nil {
				act += fmt.Sprintf(" MED %d", m.Value)
			}
			if n := s.Actions.GetAsPrepend().GetRepeat(); n > 0 {
				act += fmt.Sprintf(" prepend %d", n)
			}
			out = append(out, strings.Join(line, ", ")+" → "+strings.TrimSpace(act))
		}
	}
	return out
}

func TestPolicies(t *testing.T) {
	c := config()
	c.Services = []netip.Prefix{pfx("10.96.0.0/12")}
	c.Peers[1].Import = []bgp.Rule{
		{Action: bgp.Reject, Communities: []bgp.Community{bgp.NoExport}},
		{Action: bgp.Accept, Prefixes: []bgp.PrefixRange{{Prefix: pfx("192.0.2.0/24")}, {Prefix: pfx("2001:db8::/32"), Max: 48}}, LargeCommunities: []bgp.LargeCommunity{{1, 2, 3}}},
	}
	c.Announcements = []bgp.Announcement{{Prefix: pfx("10.244.1.0/24"), Attributes: bgp.Attributes{Prepend: 2}}}
	got := show(policies(c), importPolicy)
	want := []string{
		"10.0.0.3/32, 65535:65281 → reject",
		"10.0.0.3/32, 192.0.2.0/24{24,32}, 1:2:3 → accept",
		"10.0.0.3/32, 2001:db8::/32{32,48}, 1:2:3 → accept",
		"10.244.0.0/16{16,32} 0.0.0.0/0{1,32} → accept",
		"fd00::/16{16,128} → accept",
		"10.0.0.2/32, 10.96.0.0/12{12,32} → accept",
		"0.0.0.0/0 ::/0 → reject",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("import:\n%s", strings.Join(got, "\n"))
	}
	got = show(policies(c), exportPolicy)
	want = []string{
		"10.0.0.3/32, 10.244.1.0/24{24,24} → prepend 2",
		"10.0.0.3/32, 10.244.0.0/16{16,32} 0.0.0.0/0{1,32}, another node's → MED 100",
		"10.0.0.3/32, fd00::/16{16,128}, another node's → MED 100",
		"10.0.0.3/32, 10.96.0.0/12{12,32}, another node's → next hop kept",
		"10.0.0.2/32, 10.244.0.0/16{16,32} 0.0.0.0/0{1,32} → accept self",
		"10.0.0.2/32, fd00::/16{16,128} → accept self",
		"10.244.0.0/16{16,32} 0.0.0.0/0{1,32} 10.96.0.0/12{12,32} → accept",
		"fd00::/16{16,128} → accept",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("export:\n%s", strings.Join(got, "\n"))
	}
	if !proto.Equal(policies(c), policies(c)) {
		t.Error("the same configuration, another policy")
	}
}

// TestTerms says what resets a session and what does not.
func TestTerms(t *testing.T) {
	for name, c := range map[string]struct {
		resets bool
		change func(*bgp.Config, *bgp.Peer)
	}{
		"name":    {false, func(_ *bgp.Config, p *bgp.Peer) { p.Name = "x" }},
		"hold":    {false, func(_ *bgp.Config, p *bgp.Peer) { p.Hold = 30 * time.Second }},
		"limit":   {false, func(_ *bgp.Config, p *bgp.Peer) { p.MaxPrefixes = 7 }},
		"filters": {false, func(_ *bgp.Config, p *bgp.Peer) { p.Import = []bgp.Rule{{Action: bgp.Reject}} }},
		"BFD": {false, func(_ *bgp.Config, p *bgp.Peer) {
			p.BFD = &bgp.BFD{Transmit: time.Second, Receive: time.Second, Multiplier: 3}
		}},
		"pools":            {false, func(c *bgp.Config, _ *bgp.Peer) { c.Pools = nil }},
		"password":         {true, func(_ *bgp.Config, p *bgp.Peer) { p.Password = bgp.NewSecret("x") }},
		"AS":               {true, func(_ *bgp.Config, p *bgp.Peer) { p.ASN = 64999 }},
		"GTSM":             {true, func(_ *bgp.Config, p *bgp.Peer) { p.GTSM = 1 }},
		"graceful restart": {true, func(c *bgp.Config, _ *bgp.Peer) { c.Restart.Time = time.Minute }},
		"reflection":       {true, func(_ *bgp.Config, p *bgp.Peer) { p.ReflectorClient = true }},
		"families":         {true, func(_ *bgp.Config, p *bgp.Peer) { p.Families = []bgp.Family{bgp.IPv6} }},
	} {
		a, b := config(), config()
		c.change(&b, &b.Peers[0])
		if got := !proto.Equal(terms(neighbor(a, a.Peers[0], false)), terms(neighbor(b, b.Peers[0], true))); got != c.resets {
			t.Errorf("%s resets the session: %v", name, got)
		}
	}
}

func path(peer, nextHop string) *apiutil.Path {
	nh, err := packet.NewPathAttributeNextHop(ip(nextHop))
	if err != nil {
		panic(err)
	}
	return &apiutil.Path{Best: true, Family: packet.RF_IPv4_UC, PeerAddress: ip(peer), Attrs: []packet.PathAttributeInterface{nh}}
}

func TestBest(t *testing.T) {
	p := pfx("10.244.1.0/24")
	worse := path("10.0.0.3", "10.0.0.3")
	worse.Best = false
	own := path("10.0.0.2", "0.0.0.0")
	own.PeerAddress = netip.Addr{}
	for want, paths := range map[string][]*apiutil.Path{
		"":                                     {own, path("10.0.0.2", "10.0.0.2")},
		"10.0.0.2 internal":                    {path("10.0.0.2", "10.0.0.2"), worse},
		"10.0.0.2 internal, 10.0.0.3 external": {path("10.0.0.3", "10.0.0.3"), path("10.0.0.2", "10.0.0.2")},
		"10.0.0.9 internal":                    {path("10.0.0.2", "10.0.0.9"), path("10.0.0.3", "10.0.0.9"), path("10.0.0.3", "127.0.0.1")},
	} {
		var got []string
		for _, x := range best(p, paths, config()) {
			got = append(got, fmt.Sprintf("%v %s", x.NextHop, x.Kind))
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%q, want %q", s, want)
		}
	}
}

// TestNextHopIsOfTheFamily is about one UPDATE with routes of both.
func TestNextHopIsOfTheFamily(t *testing.T) {
	nlri, err := packet.NewIPAddrPrefix(pfx("fd00:1::/64"))
	if err != nil {
		t.Fatal(err)
	}
	mp, err := packet.NewPathAttributeMpReachNLRI(packet.RF_IPv6_UC, []packet.PathNLRI{{NLRI: nlri}}, ip("fd00::2"))
	if err != nil {
		t.Fatal(err)
	}
	x := path("10.0.0.2", "10.0.0.2")
	x.Attrs = append(x.Attrs, mp)
	if nh := nextHop(x); nh != ip("10.0.0.2") {
		t.Errorf("IPv4 by %v", nh)
	}
	if x.Family = packet.RF_IPv6_UC; nextHop(x) != ip("fd00::2") {
		t.Errorf("IPv6 by %v", nextHop(x))
	}
}

func TestWatcher(t *testing.T) {
	w := newWatcher()
	ours := []packet.ParameterCapabilityInterface{packet.NewCapMultiProtocol(packet.RF_IPv4_UC), packet.NewCapMultiProtocol(packet.RF_IPv6_UC)}
	event := func(s packet.FSMState, caps ...packet.ParameterCapabilityInterface) {
		w.onPeer(&apiutil.WatchEventMessage_PeerEvent{Type: apiutil.PEER_EVENT_STATE, Peer: apiutil.Peer{State: apiutil.PeerState{
			NeighborAddress: ip("10.0.0.2"), SessionState: s, RemoteCap: caps, LocalCap: ours,
		}}}, time.Unix(100, 0))
	}
	two := []packet.ParameterCapabilityInterface{
		packet.NewCapMultiProtocol(packet.RF_IPv4_UC), packet.NewCapMultiProtocol(packet.RF_IPv6_UC), packet.NewCapGracefulRestart(false, false, 60, nil),
	}
	eor := func(f packet.Family) { w.onEOR(&apiutil.Path{Family: f, PeerAddress: ip("10.0.0.2")}, time.Time{}) }
	event(packet.BGP_FSM_ESTABLISHED, two...)
	eor(packet.RF_IPv4_UC)
	if _, synced, states := w.take(); len(synced) != 0 || !states {
		t.Errorf("one family of two: %v %v", synced, states)
	}
	eor(packet.RF_IPv6_UC)
	// What is dirty goes before the word that all has been said.
	for i := range channel.MaxBatch + 1 {
		w.dirty[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 32)] = true
	}
	if dirty, synced, _ := w.take(); len(dirty) != channel.MaxBatch || len(synced) != 0 {
		t.Errorf("%d dirty, synced %v", len(dirty), synced)
	}
	if dirty, synced, _ := w.take(); len(dirty) != 1 || len(synced) != 1 {
		t.Errorf("%d dirty, synced %v", len(dirty), synced)
	}
	event(packet.BGP_FSM_IDLE)
	event(packet.BGP_FSM_ESTABLISHED) // and now it cannot say End-of-RIB
	w.age(time.Unix(102, 0))
	if _, synced, _ := w.take(); len(synced) != 0 {
		t.Error("synced after two seconds")
	}
	w.age(time.Unix(103, 0))
	if _, synced, _ := w.take(); len(synced) != 1 || w.peers[ip("10.0.0.2")].flaps != 1 {
		t.Errorf("synced %v, flaps %d", synced, w.peers[ip("10.0.0.2")].flaps)
	}
}

// TestEndsOfRIB: a router that speaks more families than we do ends only those that are exchanged.
func TestEndsOfRIB(t *testing.T) {
	open := func(restarts bool, families ...packet.Family) (caps []packet.ParameterCapabilityInterface) {
		for _, f := range families {
			caps = append(caps, packet.NewCapMultiProtocol(f))
		}
		if restarts {
			caps = append(caps, packet.NewCapGracefulRestart(false, false, 60, nil))
		}
		return caps
	}
	v4, v6, evpn, vpn := packet.RF_IPv4_UC, packet.RF_IPv6_UC, packet.RF_EVPN, packet.RF_IPv4_VPN
	for _, c := range []struct {
		theirs, ours []packet.ParameterCapabilityInterface
		want         int
	}{
		{open(true, v4, v6, evpn, vpn), open(true, v4), 1},
		{open(true, v4, v6, evpn), open(true, v4, v6), 2},
		{open(true, v4, v4), open(true, v4, v6), 1}, // said twice
		{open(true), open(true, v4), 1},             // IPv4 without a word
		{open(true), open(true, v6), 0},
		{open(true, evpn), open(true, v4), 0},
		{open(false, v4), open(true, v4), 0},
	} {
		if got := endsOfRIB(c.theirs, c.ours); got != c.want {
			t.Errorf("%v with %v: %d, want %d", c.theirs, c.ours, got, c.want)
		}
	}
	// And the watcher asks with both.
	w := newWatcher()
	w.onPeer(&apiutil.WatchEventMessage_PeerEvent{Type: apiutil.PEER_EVENT_STATE, Peer: apiutil.Peer{State: apiutil.PeerState{
		NeighborAddress: ip("10.0.0.2"), SessionState: packet.BGP_FSM_ESTABLISHED, RemoteCap: open(true, v4, evpn), LocalCap: open(true, v4),
	}}}, time.Unix(100, 0))
	w.onEOR(&apiutil.Path{Family: v4, PeerAddress: ip("10.0.0.2")}, time.Time{})
	if _, synced, _ := w.take(); len(synced) != 1 {
		t.Error("waits for a family that is not exchanged")
	}
}

// TestRun is the child's whole life over its socket, without a peer that answers.
func TestRun(t *testing.T) {
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Run(context.Background(), theirs, "test", slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	next := func(is func(*channel.ToParent) bool) *channel.ToParent {
		t.Helper()
		for {
			if err := ours.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			m := new(channel.ToParent)
			if err := errors.Join(channel.Read(ours, m, channel.MaxToParent), channel.CheckReport(m)); err != nil {
				t.Fatal(err)
			}
			if is(m) {
				return m
			}
		}
	}
	next(func(m *channel.ToParent) bool { return m.Hello != nil && m.Hello.Version == channel.Version })
	set := func(id uint64, c bgp.Config) string {
		t.Helper()
		if err := channel.Write(ours, channel.ToChild{Set: channel.NewSet(id, c, false)}, channel.MaxToChild); err != nil {
			t.Fatal(err)
		}
		return next(func(m *channel.ToParent) bool { return m.Applied != nil && m.Applied.ID == id }).Applied.Error
	}
	c := config()
	if why := set(1, c); why != "" {
		t.Errorf("refused: %s", why)
	}
	bad := c
	bad.Restart.LongLived = time.Hour
	if why := set(2, bad); !strings.Contains(why, "restart.longLived") {
		t.Errorf("a bad one: %q", why)
	}
	other := c
	other.ASN = 64999
	if why := set(3, other); !strings.Contains(why, "needs a new speaker") {
		t.Errorf("another AS: %q", why)
	}
	got := next(func(m *channel.ToParent) bool { return m.Peers != nil }).Peers.Peers
	if len(got) != 2 || got[0].Address != ip("10.0.0.2") || got[0].State == bgp.SessionEstablished {
		t.Errorf("%+v", got)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("when the agent ends: %v", err)
	}
}
