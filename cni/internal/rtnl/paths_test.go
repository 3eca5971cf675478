package rtnl_test

import (
	"net/netip"
	"testing"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
)

// TestPathsRoundTrip: what is sent is read back as it was, with one hop, several, none, and a gateway of the other family.
func TestPathsRoundTrip(t *testing.T) {
	a := netip.MustParseAddr
	for _, p := range []rtnl.Paths{
		{Dst: netip.MustParsePrefix("10.0.1.0/24"), Protocol: 184, Metric: 65000},
		{Dst: netip.MustParsePrefix("10.0.1.0/24"), Protocol: 184, Metric: 184, MTU: 1400, Source: a("192.0.2.1"), Hops: []rtnl.Hop{{Index: 2, Via: a("192.0.2.2")}}},
		{Dst: netip.MustParsePrefix("10.0.1.0/24"), Protocol: 184, Metric: 184, Hops: []rtnl.Hop{{Index: 2, Via: a("2001:db8::2")}}},
		{Dst: netip.MustParsePrefix("10.0.1.0/24"), Protocol: 184, Metric: 184, Hops: []rtnl.Hop{{Index: 2, Via: a("192.0.2.2")}, {Index: 3, Via: a("2001:db8::2")}}},
		{Dst: netip.MustParsePrefix("fd00::/64"), Protocol: 184, Metric: 184, Hops: []rtnl.Hop{{Index: 2, Via: a("fe80::1")}, {Index: 3, Via: a("fe80::2")}}},
	} {
		ms, err := nlwire.Split(rtnl.SetPaths(p).Msg)
		if err != nil || len(ms) != 1 {
			t.Fatalf("%v, %v", ms, err)
		}
		got, ok := rtnl.ParsePaths(ms[0])
		if !ok || !got.Equal(p) {
			t.Errorf("got %+v\nwant %+v", got, p)
		}
		other := p
		other.MTU = 1300
		if got.Equal(other) {
			t.Error("another MTU makes no difference")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(rtnl.SetPaths(rtnl.Paths{Dst: netip.MustParsePrefix("10.0.1.0/24"), Hops: []rtnl.Hop{{Index: 2, Via: netip.MustParseAddr("192.0.2.2")}, {Index: 3, Via: netip.MustParseAddr("2001:db8::2")}}}).Msg)
	f.Add(rtnl.AddVXLAN(rtnl.VXLAN{Name: "x", VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.0.2.1")}).Msg)
	f.Fuzz(func(_ *testing.T, b []byte) {
		ms, err := nlwire.Split(b)
		if err != nil {
			return
		}
		for _, m := range ms { // must return, whatever the kernel says
			_, _ = rtnl.ParsePaths(m)
			_, _ = rtnl.ParseVXLAN(m)
			_, _ = rtnl.ParseForward(m)
			_, _ = rtnl.ParseNeigh(m)
		}
	})
}
