package bgp

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func valid() Config {
	return Config{
		ASN: 64512, RouterID: ip("10.0.0.1"), Pools: []netip.Prefix{pfx("10.244.0.0/16"), pfx("fd00:10::/48")},
		Peers:         []Peer{{Address: ip("10.0.0.2"), ASN: 64512}, {Address: ip("fe80::1%eth0"), ASN: 4200000000, Families: []Family{IPv4, IPv6}, ExtendedNextHop: true}},
		Announcements: []Announcement{{Prefix: pfx("10.244.1.0/24")}},
		Restart:       Restart{Time: 120 * time.Second, LongLived: time.Hour},
	}
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	if err := (Config{}).Validate(); err != nil {
		t.Fatalf("no BGP at all: %v", err)
	}
	for _, c := range []struct {
		want   string
		change func(*Config)
	}{
		{"asn: missing", func(c *Config) { c.ASN = 0 }},
		{"asn: 23456", func(c *Config) { c.ASN = 23456 }},
		{"routerID:", func(c *Config) { c.RouterID = ip("fd00::1") }},
		{"routerID:", func(c *Config) { c.RouterID = netip.Addr{} }},
		{"clusterID:", func(c *Config) { c.ClusterID = ip("0.0.0.0") }},
		{"maxPaths:", func(c *Config) { c.MaxPaths = 65 }},
		{"restart.time: 1h8m16s", func(c *Config) { c.Restart.Time = 4096 * time.Second }},
		{"restart.time: 1.5s is not whole", func(c *Config) { c.Restart.Time = 1500 * time.Millisecond }},
		{"restart.deferral: 31s", func(c *Config) { c.Restart.Deferral = 31 * time.Second }},
		{"restart.longLived: needs", func(c *Config) { c.Restart.Time = 0 }},
		{"listen[0]:", func(c *Config) { c.Listen = []netip.Addr{ip("224.0.0.1")} }},
		{"pools[0]:", func(c *Config) { c.Pools[0] = netip.PrefixFrom(ip("10.244.0.1"), 16) }},
		{"peers[1].address: 10.0.0.2 is another", func(c *Config) { c.Peers[1] = c.Peers[0] }},
		{"peers[0].address: invalid IP", func(c *Config) { c.Peers[0].Address = netip.Addr{} }},
		{"peers[1].address: fe80::1 is link-local", func(c *Config) { c.Peers[1].Address = ip("fe80::1") }},
		{"peers[0].asn: 0", func(c *Config) { c.Peers[0].ASN = 0 }},
		{"peers[0].localASN:", func(c *Config) { c.Peers[0].LocalASN = 64513 }},
		{"peers[0].local:", func(c *Config) { c.Peers[0].Local = ip("fd00::1") }},
		{"peers[0].password:", func(c *Config) { c.Peers[0].Password = NewSecret(strings.Repeat("x", 81)) }},
		{"peers[1].multihop: cannot", func(c *Config) { c.Peers[1].Multihop, c.Peers[1].GTSM = 2, 1 }},
		{"peers[0].multihop: is for external", func(c *Config) { c.Peers[0].Multihop = 2 }},
		{"peers[1].reflectorClient:", func(c *Config) { c.Peers[1].ReflectorClient = true }},
		{"peers[0].hold:", func(c *Config) { c.Peers[0].Hold = 2 * time.Second }},
		{"peers[0].keepalive:", func(c *Config) { c.Peers[0].Keepalive = 60 * time.Second }},
		{"peers[0].families[1]:", func(c *Config) { c.Peers[0].Families = []Family{IPv4, IPv4} }},
		{"peers[0].families[0]: \"vpn\"", func(c *Config) { c.Peers[0].Families = []Family{"vpn"} }},
		{"peers[0].extendedNextHop:", func(c *Config) { c.Peers[0].ExtendedNextHop = true }},
		{"peers[1].families: IPv4 over", func(c *Config) { c.Peers[1].ExtendedNextHop = false }},
		{"peers[0].bfd.transmit:", func(c *Config) { c.Peers[0].BFD = &BFD{Receive: time.Second, Multiplier: 3} }},
		{"peers[0].bfd.multiplier:", func(c *Config) { c.Peers[0].BFD = &BFD{Receive: time.Second, Transmit: time.Second} }},
		{"peers[0].import[0].action:", func(c *Config) { c.Peers[0].Import = []Rule{{}} }},
		{"peers[0].export[0].set:", func(c *Config) { c.Peers[0].Export = []Rule{{Action: Reject, Set: Attributes{Prepend: 1}}} }},
		{"peers[0].families: IPv6 needs", func(c *Config) { c.Peers[0].Families = []Family{IPv4, IPv6} }},
		{"peers[0].export[0].set.prepend: is for external", func(c *Config) { c.Peers[0].Export = []Rule{{Action: Accept, Set: Attributes{Prepend: 1}}} }},
		{"peers[0].export[0].set.prepend:", func(c *Config) { c.Peers[0].Export = []Rule{{Action: Accept, Set: Attributes{Prepend: 11}}} }},
		{"peers[0].import[0].prefixes[0]: lengths 33", func(c *Config) {
			c.Peers[0].Import = []Rule{{Action: Accept, Prefixes: []PrefixRange{{Prefix: pfx("10.0.0.0/8"), Min: 33, Max: 33}}}}
		}},
		{"announcements[0].prefix:", func(c *Config) { c.Announcements[0].Prefix = netip.Prefix{} }},
		{"announcements[1].prefix: 10.244.1.0/24 is announced twice", func(c *Config) { c.Announcements = append(c.Announcements, c.Announcements[0]) }},
		{"announcements[0].nextHop:", func(c *Config) {
			c.Announcements[0] = Announcement{Prefix: pfx("fd00::/64"), NextHop: ip("10.0.0.1")}
		}},
		{"peers: 2001", func(c *Config) { c.Peers = make([]Peer, 2001) }},
	} {
		x := valid()
		c.change(&x)
		if err := x.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
}

func TestAdmits(t *testing.T) {
	c := valid()
	c.Pools = append(c.Pools, pfx("0.0.0.0/0"))
	if c.Admits(ip("10.0.0.2"), pfx("0.0.0.0/0")) {
		t.Error("a pool of length 0 lets a default route in")
	}
	c = valid()
	peer := &c.Peers[0]
	for _, x := range []struct {
		prefix string
		rules  []Rule
		want   bool
	}{
		{"10.244.2.0/24", nil, true},
		{"10.245.0.0/24", nil, false},
		{"10.0.0.0/8", nil, false},
		{"0.0.0.0/0", nil, false},
		{"::/0", nil, false},
		{"fd00:10:0:1::/64", nil, true},
		{"0.0.0.0/0", []Rule{{Action: Accept, Prefixes: []PrefixRange{{Prefix: pfx("0.0.0.0/0"), Min: 0, Max: 32}}}}, true},
		{"10.244.2.0/24", []Rule{{Action: Reject}}, false},
		{"10.244.2.0/24", []Rule{{Action: Reject, Communities: []Community{7}}}, true},
		{"192.0.2.0/24", []Rule{{Action: Accept, Communities: []Community{7}}}, true},
		{"192.0.2.0/25", []Rule{{Action: Accept, Prefixes: []PrefixRange{{Prefix: pfx("192.0.2.0/24"), Min: 24, Max: 24}}}}, false},
		{"192.0.2.0/25", []Rule{{Action: Accept, Prefixes: []PrefixRange{{Prefix: pfx("192.0.2.0/24")}}}}, true},
	} {
		peer.Import = x.rules
		if got := c.Admits(peer.Address, pfx(x.prefix)); got != x.want {
			t.Errorf("%s under %v: %v", x.prefix, x.rules, got)
		}
	}
	if c.Admits(ip("10.0.0.9"), pfx("10.244.2.0/24")) {
		t.Error("a stranger's route is admitted")
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	p := Peer{Address: ip("10.0.0.2"), Password: NewSecret("canary")}
	j, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "peer", p, "password", p.Password)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "peer", p, "password", p.Password)
	for _, s := range []string{string(j), log.String(), fmt.Sprintf("%v %+v %#v %s %q", p, p, p, p.Password, p.Password)} {
		if strings.Contains(s, "canary") {
			t.Errorf("the password shows: %s", s)
		}
	}
	if p.Password.Reveal() != "canary" {
		t.Error("it is lost")
	}
}

func TestCommunitiesAsText(t *testing.T) {
	in := `{"communities":["64512:7","no-export"],"largeCommunities":["4200000000:1:2"]}`
	var a Attributes
	if err := json.Unmarshal([]byte(in), &a); err != nil {
		t.Fatal(err)
	}
	if a.Communities[0] != 64512<<16|7 || a.Communities[1] != NoExport || a.LargeCommunities[0] != (LargeCommunity{4200000000, 1, 2}) {
		t.Errorf("%v", a)
	}
	if out, err := json.Marshal(a); err != nil || string(out) != in {
		t.Errorf("%s %v", out, err)
	}
	for _, bad := range []string{`"65536:1"`, `"1"`, `"1:2:3"`, `"a:b"`} {
		if json.Unmarshal([]byte(bad), new(Community)) == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	if json.Unmarshal([]byte(`"1:2"`), new(LargeCommunity)) == nil || json.Unmarshal([]byte(`"1:2:4294967296"`), new(LargeCommunity)) == nil {
		t.Error("a bad large community is taken")
	}
}

func TestPlausible(t *testing.T) {
	v4, v6 := pfx("10.244.1.0/24"), pfx("fd00::/64")
	zoned := ip("fe80::2%eth0")
	for _, c := range []struct {
		prefix netip.Prefix
		hop    string
		peer   netip.Addr
		kind   Kind
		wrong  string
	}{
		{v4, "10.0.0.2", ip("10.0.0.2"), Internal, ""},
		{v4, "fd00::2", ip("fd00::2"), External, ""},
		{v6, "fe80::1%eth0", zoned, External, ""},
		{v4, "0.0.0.0", ip("10.0.0.2"), Internal, "no next hop"},
		{v4, "127.0.0.1", ip("10.0.0.2"), Internal, "no next hop"},
		{v4, "224.0.0.1", ip("10.0.0.2"), Internal, "no next hop"},
		{v4, "255.255.255.255", ip("10.0.0.2"), Internal, "no next hop"},
		{v6, "::ffff:10.0.0.1", ip("10.0.0.2"), Internal, "no next hop"},
		{v6, "10.0.0.1", ip("10.0.0.2"), Internal, "does not go by IPv4"},
		{v6, "fe80::1", ip("fd00::2"), Internal, "on no link"},
		{v6, "fe80::1%lo", zoned, Internal, "another link"},
		{v4, "10.0.0.2", ip("10.0.0.2"), "root", "of kind"},
	} {
		err := Path{NextHop: ip(c.hop), Peer: c.peer, Kind: c.kind}.Plausible(c.prefix)
		if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%v by %s: %v, want %q", c.prefix, c.hop, err, c.wrong)
		}
	}
}
