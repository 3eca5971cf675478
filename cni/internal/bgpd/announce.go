package bgpd

import (
	"net/netip"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// announcement is a in the library's form. An unspecified next hop becomes, in each session, the session's own
// local address; of an IPv4 route in a session over IPv6 too (RFC 8950).
func announcement(a bgp.Announcement) (*apiutil.Path, error) {
	nlri, err := packet.NewIPAddrPrefix(a.Prefix)
	if err != nil {
		return nil, err
	}
	fam, nh := packet.RF_IPv4_UC, netip.IPv4Unspecified()
	if a.Prefix.Addr().Is6() {
		fam, nh = packet.RF_IPv6_UC, netip.IPv6Unspecified()
	}
	if a.NextHop.IsValid() {
		nh = a.NextHop
	}
	attrs := []packet.PathAttributeInterface{packet.NewPathAttributeOrigin(packet.BGP_ORIGIN_ATTR_TYPE_IGP)}
	if fam == packet.RF_IPv4_UC && nh.Is4() {
		x, err := packet.NewPathAttributeNextHop(nh)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, x)
	} else {
		x, err := packet.NewPathAttributeMpReachNLRI(fam, []packet.PathNLRI{{NLRI: nlri}}, nh)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, x)
	}
	return &apiutil.Path{Family: fam, Nlri: nlri, Attrs: append(attrs, optional(a.Attributes)...)}, nil
}

// optional are the attributes that an announcement may have; Prepend is policy (see prepends).
func optional(a bgp.Attributes) (out []packet.PathAttributeInterface) {
	if a.MED != nil {
		out = append(out, packet.NewPathAttributeMultiExitDisc(*a.MED))
	}
	if a.LocalPref != nil {
		out = append(out, packet.NewPathAttributeLocalPref(*a.LocalPref))
	}
	if len(a.Communities) > 0 {
		var v []uint32
		for _, c := range a.Communities {
			v = append(v, uint32(c))
		}
		out = append(out, packet.NewPathAttributeCommunities(v))
	}
	if len(a.LargeCommunities) > 0 {
		var v []*packet.LargeCommunity
		for _, c := range a.LargeCommunities {
			v = append(v, packet.NewLargeCommunity(c[0], c[1], c[2]))
		}
		out = append(out, packet.NewPathAttributeLargeCommunities(v))
	}
	return out
}
