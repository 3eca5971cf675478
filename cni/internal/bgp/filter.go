package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Community is a standard community (RFC 1997), written "64512:100" or as one of the well-known names.
type Community uint32

// The well-known communities that peers act on (RFC 1997, 7999, 8326).
const (
	NoExport          Community = 0xffffff01
	NoAdvertise       Community = 0xffffff02
	NoExportSubconfed Community = 0xffffff03
	Blackhole         Community = 0xffff029a
	GracefulShutdown  Community = 0xffff0000
)

func names() map[Community]string {
	return map[Community]string{
		NoExport: "no-export", NoAdvertise: "no-advertise", NoExportSubconfed: "no-export-subconfed",
		Blackhole: "blackhole", GracefulShutdown: "graceful-shutdown",
	}
}

// String is the well-known name or "high:low".
func (c Community) String() string {
	if n, ok := names()[c]; ok {
		return n
	}
	return fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xffff)
}

// MarshalText is String.
func (c Community) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText takes "high:low", each 0–65535, or a well-known name.
func (c *Community) UnmarshalText(b []byte) error {
	for v, n := range names() {
		if n == string(b) {
			*c = v
			return nil
		}
	}
	parts, err := numbers(string(b), 2, 16)
	if err != nil {
		return fmt.Errorf("community %q: %w", b, err)
	}
	*c = Community(parts[0]<<16 | parts[1])
	return nil
}

// LargeCommunity is three 32-bit numbers (RFC 8092), written "64512:1:2".
type LargeCommunity [3]uint32

// String is "global:one:two".
func (c LargeCommunity) String() string { return fmt.Sprintf("%d:%d:%d", c[0], c[1], c[2]) }

// MarshalText is String.
func (c LargeCommunity) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText takes three numbers with colons between.
func (c *LargeCommunity) UnmarshalText(b []byte) error {
	parts, err := numbers(string(b), 3, 32)
	if err != nil {
		return fmt.Errorf("large community %q: %w", b, err)
	}
	copy(c[:], parts)
	return nil
}

func numbers(s string, n, bits int) ([]uint32, error) {
	fields := strings.Split(s, ":")
	if len(fields) != n {
		return nil, fmt.Errorf("want %d numbers with colons between", n)
	}
	out := make([]uint32, n)
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, bits)
		if err != nil {
			return nil, fmt.Errorf("%q is no number of %d bits", f, bits)
		}
		out[i] = uint32(v)
	}
	return out, nil
}

// Action is what becomes of a route that a rule matches.
type Action string

// The two actions.
const (
	Accept Action = "accept"
	Reject Action = "reject"
)

// Rule is one line of a filter. It matches a route that matches every condition that it has; a rule without any
// matches all routes.
type Rule struct {
	// Action is what becomes of the route.
	Action Action `json:"action"`
	// Prefixes match a route that lies in one of them.
	Prefixes []PrefixRange `json:"prefixes,omitempty"`
	// Communities match a route that has one of them.
	Communities []Community `json:"communities,omitempty"`
	// LargeCommunities match a route that has one of them.
	LargeCommunities []LargeCommunity `json:"largeCommunities,omitempty"`
	// Set is laid on an accepted route: communities are added, the rest replaced.
	Set Attributes `json:"set,omitzero"`
}

// PrefixRange are the prefixes within Prefix that are Min to Max bits long; 0 and 0 mean any from Prefix's own
// length on.
type PrefixRange struct {
	Prefix netip.Prefix `json:"prefix"`
	Min    int          `json:"min,omitempty"`
	Max    int          `json:"max,omitempty"`
}

// Lengths are Min and Max with their defaults.
func (r PrefixRange) Lengths() (low, high int) {
	low, high = r.Min, r.Max
	if low == 0 && high == 0 {
		return r.Prefix.Bits(), r.Prefix.Addr().BitLen()
	}
	return max(low, r.Prefix.Bits()), orElse(high, r.Prefix.Addr().BitLen())
}

// Contains says whether p is one of the range's prefixes.
func (r PrefixRange) Contains(p netip.Prefix) bool {
	low, high := r.Lengths()
	return within(p, r.Prefix) && p.Bits() >= low && p.Bits() <= high
}

func within(p, outer netip.Prefix) bool {
	return p.Addr().Is4() == outer.Addr().Is4() && p.Bits() >= outer.Bits() && outer.Contains(p.Addr())
}

// Admits says whether the speaker of c may take prefix from peer: the import rules of the peer where they can be told
// from the prefix alone, then the default. A rule that also asks for communities counts as matching, if it accepts,
// because here they are not known: Admits is the parent's check of what the unprivileged child reports, and never
// refuses what the peer's rules may have let through.
func (c Config) Admits(peer netip.Addr, prefix netip.Prefix) bool {
	p, ok := c.Peer(peer)
	if !ok {
		return false
	}
	for _, r := range p.Import {
		if len(r.Prefixes) > 0 && !slices.ContainsFunc(r.Prefixes, func(x PrefixRange) bool { return x.Contains(prefix) }) {
			continue
		}
		if r.Action == Accept {
			return true
		}
		if len(r.Communities) == 0 && len(r.LargeCommunities) == 0 {
			return false
		}
	}
	return inOne(prefix, c.Pools) || p.Internal(c) && inOne(prefix, c.Services)
}

// InPools says whether prefix lies inside of a pool or of a range of services. A default route does in none, not even in a pool of length 0.
func (c Config) InPools(prefix netip.Prefix) bool {
	return inOne(prefix, c.Pools) || inOne(prefix, c.Services)
}

func inOne(prefix netip.Prefix, all []netip.Prefix) bool {
	return prefix.Bits() > 0 && slices.ContainsFunc(all, func(outer netip.Prefix) bool { return within(prefix, outer) })
}

// Plausible says why packets for prefix cannot go the path's way, whoever says so. A next hop comes from peers, and
// from the child that parsed it.
func (p Path) Plausible(prefix netip.Prefix) error {
	nh, zone := p.NextHop, p.NextHop.Zone()
	switch {
	case !nh.IsValid() || nh.IsUnspecified() || nh.IsMulticast() || nh.IsLoopback() || nh.Is4In6() || nh == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v by %v, which is no next hop", prefix, nh)
	case nh.Is4() && prefix.Addr().Is6():
		return fmt.Errorf("%v by %v: IPv6 does not go by IPv4", prefix, nh)
	case zone != p.Peer.Zone() && zone != "":
		return fmt.Errorf("%v by %q, on another link than the session", prefix, zone)
	case nh.Is6() && nh.IsLinkLocalUnicast() && zone == "":
		return fmt.Errorf("%v by %v, on no link", prefix, nh)
	case p.Kind != Internal && p.Kind != External:
		return fmt.Errorf("%v is of kind %q", prefix, p.Kind)
	}
	return nil
}
