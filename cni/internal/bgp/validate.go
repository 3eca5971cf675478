package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Bounds of one configuration: far above what a cluster needs, far below what would hurt the node.
const (
	MaxPeers         = 2000
	MaxAnnouncements = 20_000
	MaxRules         = 200
	MaxPathsLimit    = 64
	// MaxPassword is that of a session's key in bytes, TCP_MD5SIG_MAXKEYLEN.
	MaxPassword = 80
	// MaxPrepend bounds Attributes.Prepend: longer paths are cut off by operators.
	MaxPrepend = 10
)

// Validate says everything that is wrong with c, each error with the field's path. The zero Config is valid.
func (c Config) Validate() error {
	if !c.Enabled() {
		if len(c.Peers)+len(c.Announcements) > 0 {
			return errors.New("asn: missing, but there are peers or announcements")
		}
		return nil
	}
	var f faults
	f.add("asn", asn(c.ASN))
	f.ensure(c.RouterID.Is4() && !c.RouterID.IsUnspecified(), "routerID", "%v is not four bytes, not all zero", c.RouterID)
	f.ensure(!c.ClusterID.IsValid() || c.ClusterID.Is4() && !c.ClusterID.IsUnspecified(), "clusterID", "%v is not four bytes, not all zero", c.ClusterID)
	f.ensure(c.MaxPaths >= 0 && c.MaxPaths <= MaxPathsLimit, "maxPaths", "%d is not 0–%d", c.MaxPaths, MaxPathsLimit)
	f.seconds("restart.time", c.Restart.Time, 0, 4095*time.Second)
	f.seconds("restart.deferral", c.Restart.Deferral, 0, 30*time.Second)
	f.seconds("restart.longLived", c.Restart.LongLived, 0, 16777215*time.Second)
	f.ensure(c.Restart.LongLived == 0 || c.Restart.Enabled(), "restart.longLived", "needs restart.time (RFC 9494 §4.2)")
	for i, a := range c.Listen {
		f.ensure(a.IsValid() && a == a.Unmap() && !a.IsMulticast(), at("listen", i), "%v is no address to listen on", a)
	}
	for i, p := range c.Pools {
		f.prefix(at("pools", i), p)
	}
	for i, p := range c.Services {
		f.prefix(at("services", i), p)
	}
	f.ensure(len(c.Peers) <= MaxPeers, "peers", "%d, at most %d", len(c.Peers), MaxPeers)
	seen := map[netip.Addr]bool{}
	for i, p := range c.Peers {
		f.ensure(!seen[p.Address], at("peers", i)+".address", "%v is another peer's too", p.Address)
		seen[p.Address] = true
		p.validate(c, &f, at("peers", i))
	}
	c.validateAnnouncements(&f)
	return errors.Join(f...)
}

func (c Config) validateAnnouncements(f *faults) {
	f.ensure(len(c.Announcements) <= MaxAnnouncements, "announcements", "%d, at most %d", len(c.Announcements), MaxAnnouncements)
	seen := map[netip.Prefix]bool{}
	for i, a := range c.Announcements {
		where := at("announcements", i)
		f.prefix(where+".prefix", a.Prefix)
		f.ensure(!seen[a.Prefix], where+".prefix", "%v is announced twice", a.Prefix)
		seen[a.Prefix] = true
		if a.NextHop.IsValid() {
			f.ensure(host(a.NextHop), where+".nextHop", "%v is no host's address", a.NextHop)
			f.ensure(!a.NextHop.Is4() || a.Prefix.Addr().Is4(), where+".nextHop", "%v cannot be of an IPv6 prefix", a.NextHop)
		}
		a.validate(f, where)
	}
}

func (p Peer) validate(c Config, f *faults, where string) {
	f.ensure(host(p.Address), where+".address", "%v is no host's address", p.Address)
	f.ensure(!p.Address.IsLinkLocalUnicast() || p.Address.Is4() || p.Address.Zone() != "", where+".address", "%v is link-local: name the link, as in %v%%eth0", p.Address, p.Address)
	f.add(where+".asn", asn(p.ASN))
	if p.LocalASN != 0 {
		f.add(where+".localASN", asn(p.LocalASN))
		f.ensure(p.LocalASN != p.ASN && p.ASN != c.ASN, where+".localASN", "is for external peers")
	}
	f.ensure(!p.Local.IsValid() || host(p.Local) && p.Local.Is4() == p.Address.Is4(), where+".local", "%v is no address that reaches %v", p.Local, p.Address)
	f.ensure(len(p.Password.value) <= MaxPassword, where+".password", "longer than %d bytes", MaxPassword)
	internal := p.Internal(c)
	f.ensure(p.GTSM == 0 || p.Multihop == 0, where+".multihop", "cannot be together with gtsm")
	f.ensure(p.Multihop == 0 || !internal, where+".multihop", "is for external peers: internal ones may be any number of hops away")
	f.ensure(!p.ReflectorClient || internal, where+".reflectorClient", "is for internal peers (RFC 4456)")
	f.seconds(where+".hold", p.Hold, 0, 65535*time.Second)
	f.ensure(p.Hold == 0 || p.Hold >= 3*time.Second, where+".hold", "%v is less than 3s (RFC 4271 §4.2)", p.Hold)
	f.seconds(where+".keepalive", p.Keepalive, 0, p.HoldTime()/2)
	f.seconds(where+".connectRetry", p.ConnectRetry, 0, 65535*time.Second)
	f.ensure(len(p.Families) <= 2, where+".families", "%d, there are two", len(p.Families))
	v4, v6 := false, false
	for i, fam := range p.Families {
		f.ensure(fam == IPv4 || fam == IPv6, at(where+".families", i), "%q is neither %q nor %q", fam, IPv4, IPv6)
		f.ensure(i == 0 || p.Families[0] != fam, at(where+".families", i), "%q stands twice", fam)
		v4, v6 = v4 || fam == IPv4, v6 || fam == IPv6
	}
	f.ensure(!p.ExtendedNextHop || p.Address.Is6() && v4, where+".extendedNextHop", "needs a session over IPv6 that carries IPv4 (RFC 8950)")
	f.ensure(p.ExtendedNextHop || !v4 || p.Address.Is4(), where+".families", "IPv4 over an IPv6 session needs extendedNextHop")
	f.ensure(!v6 || p.Address.Is6(), where+".families", "IPv6 needs a session over IPv6")
	p.BFD.validate(f, where+".bfd")
	rules(f, where+".import", p.Import)
	rules(f, where+".export", p.Export)
	for i, r := range p.Export {
		f.ensure(!internal || r.Set.Prepend == 0, at(where+".export", i)+".set.prepend", "is for external peers: to internal ones it is a loop")
	}
}

func (b *BFD) validate(f *faults, where string) {
	if b == nil {
		return
	}
	for name, d := range map[string]time.Duration{".transmit": b.Transmit, ".receive": b.Receive} {
		f.ensure(d >= 10*time.Millisecond && d <= time.Minute, where+name, "%v is not 10ms–1m", d)
	}
	f.ensure(b.Multiplier > 0, where+".multiplier", "0 is not 1–255")
}

func rules(f *faults, where string, all []Rule) {
	f.ensure(len(all) <= MaxRules, where, "%d rules, at most %d", len(all), MaxRules)
	for i, r := range all {
		w := at(where, i)
		f.ensure(r.Action == Accept || r.Action == Reject, w+".action", "%q is neither %q nor %q", r.Action, Accept, Reject)
		f.ensure(r.Action == Accept || r.Set.zero(), w+".set", "means nothing on a route that is rejected")
		for j, x := range r.Prefixes {
			v := at(w+".prefixes", j)
			f.prefix(v+".prefix", x.Prefix)
			if x.Prefix.IsValid() {
				low, high := x.Lengths()
				f.ensure(x.Min >= 0 && x.Max >= 0 && low <= high && high <= x.Prefix.Addr().BitLen(), v, "lengths %d–%d cannot be within %v", x.Min, x.Max, x.Prefix)
			}
		}
		r.Set.validate(f, w+".set")
	}
}

func (a Attributes) zero() bool {
	return len(a.Communities)+len(a.LargeCommunities) == 0 && a.MED == nil && a.LocalPref == nil && a.Prepend == 0
}

func (a Attributes) validate(f *faults, where string) {
	f.ensure(a.Prepend <= MaxPrepend, where+".prepend", "%d is more than %d", a.Prepend, MaxPrepend)
	f.ensure(len(a.Communities)+len(a.LargeCommunities) <= 64, where+".communities", "more than 64")
}

// faults are errors with the path of the field that each is of.
type faults []error

func (f *faults) ensure(ok bool, where, format string, args ...any) {
	if !ok {
		*f = append(*f, fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...)))
	}
}

func (f *faults) add(where string, err error) {
	if err != nil {
		*f = append(*f, fmt.Errorf("%s: %w", where, err))
	}
}

func (f *faults) seconds(where string, d, low, high time.Duration) {
	f.ensure(d >= low && d <= high, where, "%v is not %v–%v", d, low, high)
	f.ensure(d%time.Second == 0, where, "%v is not whole seconds", d)
}

func (f *faults) prefix(where string, p netip.Prefix) {
	f.ensure(p.IsValid() && p == p.Masked() && !p.Addr().Is4In6(), where, "%v is no prefix in canonical form", p)
}

func at(name string, i int) string { return fmt.Sprintf("%s[%d]", name, i) }

func host(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a == a.Unmap()
}

func asn(n uint32) error {
	switch n {
	case 0, 23456, 65535, 4294967295:
		return fmt.Errorf("%d is reserved (RFC 7607, 6793, 7300)", n)
	}
	return nil
}
