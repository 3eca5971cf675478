package peering

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/fabric"
)

// rules are a peer's filter as the speaker takes it. The error begins with the key.
func rules(key string, all []fabric.BGPRule) ([]bgp.Rule, error) {
	var out []bgp.Rule
	for i, r := range all {
		x := bgp.Rule{Action: bgp.Action(r.Action), Set: bgp.Attributes{LocalPref: r.LocalPref, MED: r.MED, Prepend: r.Prepend}}
		for j, p := range r.Prefixes {
			cidr, err := netip.ParsePrefix(p.CIDR)
			if err != nil {
				return nil, fmt.Errorf("%s[%d].prefixes[%d].cidr: %w", key, i, j, err)
			}
			x.Prefixes = append(x.Prefixes, bgp.PrefixRange{Prefix: cidr, Min: p.Min, Max: p.Max})
		}
		var err error
		if x.Communities, x.LargeCommunities, err = communities(r.Communities); err != nil {
			return nil, fmt.Errorf("%s[%d].communities: %w", key, i, err)
		}
		if x.Set.Communities, x.Set.LargeCommunities, err = communities(r.AddCommunities); err != nil {
			return nil, fmt.Errorf("%s[%d].addCommunities: %w", key, i, err)
		}
		out = append(out, x)
	}
	return out, nil
}

// communities tells the standard ones from the large ones, which have three numbers.
func communities(all []string) (standard []bgp.Community, large []bgp.LargeCommunity, err error) {
	for _, s := range all {
		if strings.Count(s, ":") == 2 {
			var c bgp.LargeCommunity
			if err := c.UnmarshalText([]byte(s)); err != nil {
				return nil, nil, err
			}
			large = append(large, c)
			continue
		}
		var c bgp.Community
		if err := c.UnmarshalText([]byte(s)); err != nil {
			return nil, nil, err
		}
		standard = append(standard, c)
	}
	return standard, large, nil
}
