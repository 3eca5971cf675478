package ruleset

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/nft"
)

// Multicast are destinations for which a pod's address is never exchanged.
func Multicast() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10")}
}

// intervals turns prefixes into the elements of the two interval sets of a name: sorted, merged where they touch or
// overlap, because nf_tables refuses overlaps.
func intervals(name string, prefixes []netip.Prefix) []nft.Element {
	ps := slices.Clone(prefixes)
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Masked().Addr().Compare(b.Masked().Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var es []nft.Element
	for i := 0; i < len(ps); {
		start, end := ps[i].Masked().Addr(), after(ps[i])
		for i++; i < len(ps) && end.IsValid() && ps[i].Addr().Is4() == start.Is4() &&
			ps[i].Masked().Addr().Compare(end) <= 0; i++ {
			if e := after(ps[i]); !e.IsValid() || e.Compare(end) > 0 {
				end = e
			}
		}
		for !end.IsValid() && i < len(ps) && ps[i].Addr().Is4() == start.Is4() {
			i++
		}
		set := name + suffix(start)
		es = append(es, nft.Element{Set: set, Key: start.AsSlice()})
		if end.IsValid() {
			es = append(es, nft.Element{Set: set, Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return es
}

// after is the first address behind a prefix; the zero Addr behind the last address of the family.
func after(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}
