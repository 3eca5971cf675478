package dropin

import (
	"net/netip"

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
)

// masquerade gives what leaves the container's network and all others that we know the node's address.
func (c *Call) masquerade(rec *state.Record, r *spec.Result, ipt bool) error {
	for _, ip := range r.IPs {
		rec.Pod.Addrs = append(rec.Pod.Addrs, ip.Address.Addr())
	}
	if ipt {
		rec.IPTables = iptables.New(c.masqueradeIn(r, true), c.masqueradeIn(r, false))
	} else {
		rec.Pod.Masquerade = true
	}
	if err := c.net.Save(rec); err != nil {
		return err
	}
	return c.net.Rules(rec, networks(r)...)
}

// masqueradeIn is upstream's chain for a family; nil if the result has no address of it.
func (c *Call) masqueradeIn(r *spec.Result, v4 bool) *iptables.Change {
	chain := iptables.Name{Table: "nat", Chain: iptables.ChainName("CNI-", c.conf.Name, c.ContainerID)}
	multicast := "224.0.0.0/4"
	if !v4 {
		multicast = "ff00::/8"
	}
	comment := iptables.Comment("", c.conf.Name, c.ContainerID)
	var ch iptables.Change
	own := iptables.Chain{Name: chain}
	for _, ip := range r.IPs {
		a := ip.Address.Addr()
		if a.Is4() != v4 {
			continue
		}
		own.Rules = append(own.Rules, "-d "+ip.Address.Masked().String()+` -m comment --comment "`+comment+`" -j ACCEPT`)
		ch.Jumps = append(ch.Jumps, iptables.Jump{
			Name: iptables.Name{Table: "nat", Chain: "POSTROUTING"}, Mark: "-j " + chain.Chain, Own: true,
			Rule: "-s " + netip.PrefixFrom(a, a.BitLen()).String() + ` -m comment --comment "` + comment + `" -j ` + chain.Chain,
		})
	}
	if ch.Jumps == nil {
		return nil
	}
	own.Rules = append(own.Rules, "! -d "+multicast+` -m comment --comment "`+comment+`" -j MASQUERADE`)
	ch.Own = []iptables.Chain{own}
	return &ch
}
