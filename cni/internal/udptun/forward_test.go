package udptun

import (
	"net/netip"
	"testing"

	"github.com/berth-project/berth/cni/internal/overlay"
)

func TestPeersByBlock(t *testing.T) {
	a := netip.MustParseAddr
	p := newPeers([]overlay.UDPPeer{
		{Block: netip.MustParsePrefix("fd00:2::/64"), Dst: a("192.0.2.2")},
		{Block: netip.MustParsePrefix("10.0.3.0/24"), Dst: a("192.0.2.3")},
		{Block: netip.MustParsePrefix("10.0.1.0/24"), Dst: a("192.0.2.1")},
	})
	for addr, want := range map[string]string{
		"10.0.1.0": "192.0.2.1", "10.0.1.255": "192.0.2.1", "10.0.3.7": "192.0.2.3", "fd00:2::9": "192.0.2.2",
		"10.0.2.1": "", "10.0.0.255": "", "10.0.4.0": "", "fd00:3::1": "", "::1": "",
	} {
		got, ok := p.of(a(addr))
		if ok != (want != "") || ok && got != a(want) {
			t.Errorf("%s → %s, %v, want %q", addr, got, ok, want)
		}
	}
	if _, ok := newPeers(nil).of(a("10.0.0.1")); ok {
		t.Error("nobody is somebody")
	}
}

func FuzzEnds(f *testing.F) {
	f.Add([]byte{0x45, 19: 1})
	f.Add([]byte{0x60, 39: 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if src, dst, ok := ends(b); ok && (!src.IsValid() || src.Is4() != dst.Is4()) {
			t.Errorf("%v, %v", src, dst)
		}
	})
}
