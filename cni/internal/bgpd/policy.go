package bgpd

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// The names of the two policies, which stay assigned while their statements are replaced.
const (
	importPolicy = "import"
	exportPolicy = "export"
)

// policies compiles the filters of all peers into one policy for each direction, because the library gives peers of
// their own only to route servers: the rules of each peer, tied to it by a condition, then the default for all.
//
//	import: peer's rules → inside of a pool: accept → from any peer: reject → (local) accept
//	export: prepend of announcements, detours, then peer's rules → inside of a pool: accept → reject
func policies(c bgp.Config) *api.SetPoliciesRequest {
	b := &policyBuilder{}
	in := b.policy(importPolicy)
	for i, p := range c.Peers {
		b.rules(in, peerRules{fmt.Sprintf("import-%d", i), p, p.Import})
	}
	b.pools(in, c.Pools, "", nil)
	if nodes := b.neighbors("nodes", c.Peers, func(p bgp.Peer) bool { return p.Internal(c) }); nodes != "" {
		b.pools(in, c.Services, nodes, nil) // from outside a rule must let them in
	}
	b.sets = append(b.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: "anyone", List: []string{"0.0.0.0/0", "::/0"}})
	in.Statements = append(in.Statements, &api.Statement{
		Name:       "import-rest",
		Conditions: &api.Conditions{NeighborSet: &api.MatchSet{Name: "anyone", Type: api.MatchSet_TYPE_ANY}},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_REJECT},
	})
	out := b.policy(exportPolicy)
	b.prepends(out, c)
	b.detours(out, c)
	for i, p := range c.Peers {
		b.rules(out, peerRules{fmt.Sprintf("export-%d", i), p, p.Export})
	}
	if self := b.neighbors("next-hop-self", c.Peers, func(p bgp.Peer) bool { return p.NextHopSelf }); self != "" {
		b.pools(out, c.Pools, self, &api.NexthopAction{Self: true})
	}
	b.pools(out, slices.Concat(c.Pools, c.Services), "", nil)
	return &api.SetPoliciesRequest{DefinedSets: b.sets, Policies: b.all}
}

// assignments tie the two policies to all peers. They are made once: SetPolicies keeps them by name.
func assignments() []*api.PolicyAssignment {
	return []*api.PolicyAssignment{
		{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{{Name: importPolicy}}, DefaultAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
		{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT, Policies: []*api.Policy{{Name: exportPolicy}}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT},
	}
}

type policyBuilder struct {
	sets []*api.DefinedSet
	all  []*api.Policy
}

type peerRules struct {
	name  string
	peer  bgp.Peer
	rules []bgp.Rule
}

func (b *policyBuilder) policy(name string) *api.Policy {
	p := &api.Policy{Name: name}
	b.all = append(b.all, p)
	return p
}

// neighbors defines the set of those peers that match, and is its name; "" if there are none.
func (b *policyBuilder) neighbors(name string, peers []bgp.Peer, match func(bgp.Peer) bool) string {
	var list []string
	for _, p := range peers {
		if match(p) {
			a := p.Address.WithZone("")
			list = append(list, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	if len(list) == 0 {
		return ""
	}
	b.sets = append(b.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: name, List: list})
	return name
}

// prefixes defines a set for each family that ranges have; the library keeps families apart.
func (b *policyBuilder) prefixes(name string, ranges []bgp.PrefixRange) (sets []string) {
	byFamily := map[bgp.Family][]*api.Prefix{}
	for _, r := range ranges {
		low, high := r.Lengths()
		f := bgp.FamilyOf(r.Prefix.Addr())
		byFamily[f] = append(byFamily[f], &api.Prefix{IpPrefix: r.Prefix.String(), MaskLengthMin: uint32(low), MaskLengthMax: uint32(high)})
	}
	for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		if len(byFamily[f]) > 0 {
			n := name + "-" + string(f)
			b.sets = append(b.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_PREFIX, Name: n, Prefixes: byFamily[f]})
			sets = append(sets, n)
		}
	}
	return sets
}

// pools accepts what lies in a pool, for the peers of a neighbour set or, if that is "", all. Never a default route.
func (b *policyBuilder) pools(p *api.Policy, pools []netip.Prefix, neighbors string, nh *api.NexthopAction) {
	var ranges []bgp.PrefixRange
	for _, x := range pools {
		ranges = append(ranges, bgp.PrefixRange{Prefix: x, Min: max(1, x.Bits()), Max: x.Addr().BitLen()})
	}
	name := p.Name + "-pools"
	if neighbors != "" {
		name += "-" + neighbors
	}
	for _, set := range b.prefixes(name, ranges) {
		s := &api.Statement{
			Name:       set,
			Conditions: &api.Conditions{PrefixSet: &api.MatchSet{Name: set, Type: api.MatchSet_TYPE_ANY}},
			Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT, Nexthop: nh},
		}
		if neighbors != "" {
			s.Conditions.NeighborSet = &api.MatchSet{Name: neighbors, Type: api.MatchSet_TYPE_ANY}
		}
		p.Statements = append(p.Statements, s)
	}
}

// rules appends a peer's. One with prefixes of both families becomes two statements.
func (b *policyBuilder) rules(p *api.Policy, r peerRules) {
	if len(r.rules) == 0 {
		return
	}
	only := &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: b.neighbors(r.name, []bgp.Peer{r.peer}, func(bgp.Peer) bool { return true })}
	for i, rule := range r.rules {
		name := fmt.Sprintf("%s-%d", r.name, i)
		sets := b.prefixes(name, rule.Prefixes)
		if len(rule.Prefixes) == 0 {
			sets = []string{""}
		}
		for _, set := range sets {
			s := &api.Statement{Name: name + set, Conditions: &api.Conditions{NeighborSet: only}, Actions: actions(rule, r.peer.NextHopSelf && p.Name == exportPolicy)}
			if set != "" {
				s.Conditions.PrefixSet = &api.MatchSet{Name: set, Type: api.MatchSet_TYPE_ANY}
			}
			b.communities(s, name, rule)
			p.Statements = append(p.Statements, s)
		}
	}
}

func (b *policyBuilder) communities(s *api.Statement, name string, rule bgp.Rule) {
	if len(rule.Communities) > 0 {
		s.Conditions.CommunitySet = &api.MatchSet{Name: name + "-c", Type: api.MatchSet_TYPE_ANY}
		b.define(api.DefinedType_DEFINED_TYPE_COMMUNITY, name+"-c", standard(rule.Communities))
	}
	if len(rule.LargeCommunities) > 0 {
		s.Conditions.LargeCommunitySet = &api.MatchSet{Name: name + "-l", Type: api.MatchSet_TYPE_ANY}
		b.define(api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, name+"-l", large(rule.LargeCommunities))
	}
}

// define adds a set once: a rule of two families asks twice.
func (b *policyBuilder) define(typ api.DefinedType, name string, list []string) {
	for _, s := range b.sets {
		if s.Name == name && s.DefinedType == typ {
			return
		}
	}
	b.sets = append(b.sets, &api.DefinedSet{DefinedType: typ, Name: name, List: list})
}

// prepends lengthens the path of announcements that ask for it, for external peers: in an internal session one's own
// AS in the path is a loop.
func (b *policyBuilder) prepends(p *api.Policy, c bgp.Config) {
	external := ""
	for n := uint8(1); n <= bgp.MaxPrepend; n++ {
		var ranges []bgp.PrefixRange
		for _, a := range c.Announcements {
			if a.Prepend == n {
				ranges = append(ranges, bgp.PrefixRange{Prefix: a.Prefix, Min: a.Prefix.Bits(), Max: a.Prefix.Bits()})
			}
		}
		if len(ranges) == 0 {
			continue
		}
		if external == "" {
			external = b.neighbors("external", c.Peers, func(p bgp.Peer) bool { return !p.Internal(c) })
			if external == "" {
				return
			}
		}
		for _, set := range b.prefixes(fmt.Sprintf("prepend-%d", n), ranges) {
			p.Statements = append(p.Statements, &api.Statement{
				Name: set,
				Conditions: &api.Conditions{
					PrefixSet:   &api.MatchSet{Name: set, Type: api.MatchSet_TYPE_ANY},
					NeighborSet: &api.MatchSet{Name: external, Type: api.MatchSet_TYPE_ANY},
				},
				Actions: &api.Actions{AsPrepend: &api.AsPrependAction{Repeat: uint32(n), UseLeftMost: true}},
			})
		}
	}
}

// detour is the MED of what other nodes said: who speaks with both prefers the node itself.
const detour = 100

// detours mark what is told to external peers of other nodes' prefixes, before their own rules: a block is told as the
// longer way that it is, a service as reached by the node that said it.
func (b *policyBuilder) detours(p *api.Policy, c bgp.Config) {
	external := b.neighbors("outside", c.Peers, func(p bgp.Peer) bool { return !p.Internal(c) })
	if external == "" {
		return
	}
	for _, d := range []struct {
		name    string
		ranges  []netip.Prefix
		actions *api.Actions
	}{
		{"detour-pools", c.Pools, &api.Actions{Med: &api.MedAction{Type: api.MedAction_TYPE_REPLACE, Value: detour}}},
		{"detour-services", c.Services, &api.Actions{Nexthop: &api.NexthopAction{Unchanged: true}}},
	} {
		var ranges []bgp.PrefixRange
		for _, x := range d.ranges {
			ranges = append(ranges, bgp.PrefixRange{Prefix: x, Min: max(1, x.Bits()), Max: x.Addr().BitLen()})
		}
		for _, set := range b.prefixes(d.name, ranges) {
			p.Statements = append(p.Statements, &api.Statement{
				Name: set,
				Conditions: &api.Conditions{
					PrefixSet:   &api.MatchSet{Name: set, Type: api.MatchSet_TYPE_ANY},
					NeighborSet: &api.MatchSet{Name: external, Type: api.MatchSet_TYPE_ANY},
					RouteType:   api.Conditions_ROUTE_TYPE_INTERNAL,
				},
				Actions: d.actions,
			})
		}
	}
}

func actions(r bgp.Rule, nextHopSelf bool) *api.Actions {
	if r.Action == bgp.Reject {
		return &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_REJECT}
	}
	a := &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}
	if len(r.Set.Communities) > 0 {
		a.Community = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: standard(r.Set.Communities)}
	}
	if len(r.Set.LargeCommunities) > 0 {
		a.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: large(r.Set.LargeCommunities)}
	}
	if r.Set.MED != nil {
		a.Med = &api.MedAction{Type: api.MedAction_TYPE_REPLACE, Value: int64(*r.Set.MED)}
	}
	if r.Set.LocalPref != nil {
		a.LocalPref = &api.LocalPrefAction{Value: *r.Set.LocalPref}
	}
	if r.Set.Prepend > 0 {
		a.AsPrepend = &api.AsPrependAction{Repeat: uint32(r.Set.Prepend), UseLeftMost: true}
	}
	if nextHopSelf {
		a.Nexthop = &api.NexthopAction{Self: true}
	}
	return a
}

// standard is the library's form, in which well-known ones are numbers too.
func standard(all []bgp.Community) (out []string) {
	for _, c := range all {
		out = append(out, fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xffff))
	}
	return out
}

func large(all []bgp.LargeCommunity) (out []string) {
	for _, c := range all {
		out = append(out, c.String())
	}
	return out
}
