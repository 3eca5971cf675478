package ruleset

import (
	"net/netip"

	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// Ports and types of what a pod may not say (RFC 2131, 8415, 792, 4861).
const (
	dhcp4Client         = 68
	dhcp6Client         = 546
	icmpRedirect        = 5
	icmpRouterAdvert    = 9
	icmp6RouterAdvert   = 134
	icmp6Redirect       = 137
	loopbackNet         = 127
	addrRegs4, addrRegs = 1, 4
)

func rules(t nft.Table) []nlwire.Op {
	var ops []nlwire.Op
	add := func(chain string, exprs ...nft.Expr) { ops = append(ops, t.AddRule(chain, exprs...)) }
	guardRules(add)
	portRules(add)
	isolateRules(add)
	sourceRules(add)
	return ops
}

func guardRules(add func(string, ...nft.Expr)) {
	const chain, r = "guard", nft.R0
	add(chain, nft.Meta(nft.MetaIifName, r), nft.NotEqual(r, LinkPrefix[0], LinkPrefix[1], LinkPrefix[2]), nft.Return())
	add(chain, ofFamily(false, nft.DestIPFirstByte(r), nft.Equal(r, loopbackNet), nft.Counter(), nft.Drop())...)
	for _, v6 := range families() {
		icmp, client := byte(unix.IPPROTO_ICMP), uint16(dhcp4Client)
		forbidden := []byte{icmpRedirect, icmpRouterAdvert}
		if v6 {
			icmp, client = unix.IPPROTO_ICMPV6, dhcp6Client
			forbidden = []byte{icmp6RouterAdvert, icmp6Redirect}
		}
		add(chain, ofFamily(v6, nft.Meta(nft.MetaL4Proto, r), nft.Equal(r, unix.IPPROTO_UDP),
			nft.DestPort(r), nft.Equal(r, nft.Port(client)...), nft.Counter(), nft.Drop())...)
		for _, typ := range forbidden {
			add(chain, ofFamily(v6, nft.Meta(nft.MetaL4Proto, r), nft.Equal(r, icmp),
				nft.ICMPType(r), nft.Equal(r, typ), nft.Counter(), nft.Drop())...)
		}
		add(chain, ofFamily(v6, nft.Meta(nft.MetaIifName, r), nft.EtherSource(r+4), nft.SourceIP(v6, r+6),
			nft.In("source"+digit(v6), r), nft.Return())...)
	}
	add(chain, nft.Counter(), nft.Drop())
}

func portRules(add func(string, ...nft.Expr)) {
	const r = nft.R0
	local := append(nft.DestIsLocal(), nft.Jump("ports"))
	add("ports-in", local...)
	// Linux does not route ::1 to a link, so leave it to whoever listens there (or to a refusal).
	add("ports-out", ofFamily(true, nft.DestIP(true, r), nft.Equal(r, netip.IPv6Loopback().AsSlice()...), nft.Return())...)
	add("ports-out", local...)
	for _, v6 := range families() {
		n := nft.Reg(addrRegs4)
		if v6 {
			n = addrRegs
		}
		add("ports", ofFamily(v6, nft.DestIP(v6, r), nft.Meta(nft.MetaL4Proto, r+n), nft.DestPort(r+n+1),
			nft.Map("port-ip"+digit(v6), r, r), nft.DNAT(v6, r, r+n))...)
		add("ports", ofFamily(v6, nft.Meta(nft.MetaL4Proto, r), nft.DestPort(r+1),
			nft.Map("port"+digit(v6), r, r), nft.DNAT(v6, r, r+n))...)
	}
}

func isolateRules(add func(string, ...nft.Expr)) {
	const chain, r = "isolate", nft.R0
	pair := []nft.Expr{nft.Meta(nft.MetaIifName, r), nft.Meta(nft.MetaOifName, r+4)}
	add(chain, append(pair[:2:2], nft.In("same-bridge", r), nft.Return())...)
	add(chain, append(pair[:2:2], nft.In("isolated-bridge", r), nft.Counter(), nft.Drop())...)
	add(chain, nft.Meta(nft.MetaIifName, r), nft.In("bridge", r), nft.Meta(nft.MetaOifName, r), nft.In("bridge", r),
		nft.Counter(), nft.Drop())
}

func sourceRules(add func(string, ...nft.Expr)) {
	const chain, r = "source", nft.R0
	for _, v6 := range families() {
		n := nft.Reg(addrRegs4)
		if v6 {
			n = addrRegs
		}
		add(chain, ofFamily(v6, nft.SourceIP(v6, r), nft.DestIP(v6, r+n), nft.In("hairpin"+digit(v6), r), nft.Masquerade())...)
		if !v6 {
			add(chain, ofFamily(v6, nft.SourceIPFirstByte(r), nft.Equal(r, loopbackNet),
				nft.DestIP(v6, r), nft.DestIP(v6, r+n), nft.In("hairpin"+digit(v6), r), nft.Masquerade())...)
		}
		add(chain, append(append(ofFamily(v6), nft.WasDNATed()...), nft.DestIP(v6, r), nft.Meta(nft.MetaL4Proto, r+n),
			nft.DestPort(r+n+1), nft.In("masquerade-port"+digit(v6), r), nft.Masquerade())...)
		add(chain, append(append(ofFamily(v6), nft.WasDNATed()...), nft.SourceIP(v6, r), nft.In("bridged"+digit(v6), r),
			nft.DestIP(v6, r), nft.In("bridged"+digit(v6), r), nft.Masquerade())...)
		add(chain, ofFamily(v6, nft.SourceIP(v6, r), nft.In("masquerade"+digit(v6), r),
			nft.DestIP(v6, r), nft.NotIn("no-masquerade"+digit(v6), r), nft.Masquerade())...)
	}
}

func digit(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}
