package ruleset

import (
	"net/netip"
	"testing"
)

func TestIntervalsHoldExactlyThePrefixes(t *testing.T) {
	for _, c := range []struct {
		name    string
		in      []string
		inside  []string
		outside []string
	}{
		{"none", nil, []string{"224.0.0.1", "ff02::1", "fe80::1"}, []string{"10.0.0.1", "2001:db8::1"}},
		{"nested and touching", []string{"10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8"}, []string{"10.0.0.0", "11.255.255.255"}, []string{"9.255.255.255", "12.0.0.0"}},
		{"to the end", []string{"240.0.0.0/4", "ff00::/8"}, []string{"255.255.255.255", "ff00::"}, []string{"223.255.255.255"}},
		{"everything", []string{"0.0.0.0/0", "::/0"}, []string{"0.0.0.0", "255.255.255.255", "::", "fd00::1"}, nil},
		{"twice", []string{"fd00::/64", "fd00::/64"}, []string{"fd00::ffff"}, []string{"fd00:0:0:1::"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ps []netip.Prefix
			for _, s := range c.in {
				ps = append(ps, netip.MustParsePrefix(s))
			}
			has := func(a netip.Addr) bool {
				in := false
				for _, e := range intervals("x", append(Multicast(), ps...)) {
					k, _ := netip.AddrFromSlice(e.Key)
					if k.Is4() == a.Is4() && k.Compare(a) <= 0 {
						in = !e.IntervalEnd
					}
				}
				return in
			}
			for _, s := range c.inside {
				if a, err := netip.ParseAddr(s); err == nil && !has(a) {
					t.Errorf("%s is not in", s)
				}
			}
			for _, s := range c.outside {
				if has(netip.MustParseAddr(s)) {
					t.Errorf("%s is in", s)
				}
			}
		})
	}
}
