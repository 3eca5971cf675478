package dropin

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/berth-project/berth/cni/internal/loguard"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// bridge is the configuration of type bridge: a veth whose host end is a port of a bridge.
type bridge struct {
	Bridge              string  `json:"bridge"`
	IsGateway           bool    `json:"isGateway"`
	IsDefaultGateway    bool    `json:"isDefaultGateway"`
	ForceAddress        bool    `json:"forceAddress"`
	IPMasq              bool    `json:"ipMasq"`
	IPMasqBackend       string  `json:"ipMasqBackend"`
	MTU                 int     `json:"mtu"`
	HairpinMode         bool    `json:"hairpinMode"`
	PromiscMode         bool    `json:"promiscMode"`
	Vlan                int     `json:"vlan"`
	VlanTrunk           []trunk `json:"vlanTrunk"`
	PreserveDefaultVlan bool    `json:"preserveDefaultVlan"`
	MacSpoofChk         bool    `json:"macspoofchk"`
	EnableDAD           bool    `json:"enabledad"`
	NoInterface         bool    `json:"disableContainerInterface"`
	PortIsolation       bool    `json:"portIsolation"`

	mac      rtnl.MAC
	vlans    []rtnl.Vlan
	iptables bool
	ipam     *ipam
}

func bridgePlugin() plugin {
	b := &bridge{}
	return plugin{
		parse:  b.parse,
		add:    b.add,
		check:  b.check,
		del:    func(c *Call) error { return c.delInterface(b.ipam) },
		status: func(c *Call) error { return b.ipam.status(c) },
		gc:     func(c *Call) error { return b.ipam.gc(c) },
	}
}

func (b *bridge) parse(c *Call) (err error) {
	if err = c.parse(b); err != nil {
		return err
	}
	if b.Bridge == "" {
		b.Bridge = "cni0"
	}
	b.IsGateway = b.IsGateway || b.IsDefaultGateway
	layer3 := c.conf.IPAM.Type != ""
	switch {
	case !netconf.ValidIfName(b.Bridge):
		err = spec.Errorf(spec.CodeConfig, "bridge %q is not the name of an interface", b.Bridge)
	case b.MTU < 0 || b.MTU > 65535:
		err = spec.Errorf(spec.CodeConfig, "mtu %d is not between 0 and 65535", b.MTU)
	case b.HairpinMode && b.PromiscMode:
		err = spec.Errorf(spec.CodeConfig, "hairpinMode and promiscMode cannot both be true")
	case layer3 && b.NoInterface:
		err = spec.Errorf(spec.CodeConfig, "disableContainerInterface cannot be true with ipam.type %q", c.conf.IPAM.Type)
	}
	if err != nil {
		return err
	}
	if b.mac, err = c.wantedMAC(); err != nil {
		return err
	}
	if b.vlans, err = b.parseVlans(); err != nil {
		return err
	}
	if b.IPMasq {
		if b.iptables, err = c.backend("ipMasqBackend", b.IPMasqBackend, ""); err != nil {
			return err
		}
	}
	b.ipam, err = c.parseIPAM()
	return err
}

// wantedMAC is the address that CNI_ARGS, args.cni or the runtime ask for; the last of them wins.
func (c *Call) wantedMAC() (mac rtnl.MAC, err error) {
	args, err := netconf.ParseArgs(c.Args)
	if err != nil {
		return mac, err
	}
	for _, src := range [][2]string{{"CNI_ARGS", args["MAC"]}, {"args.cni", c.conf.Args.CNI.MAC}, {"runtimeConfig", c.conf.RuntimeConfig.MAC}} {
		if src[1] != "" {
			if mac, err = netconf.ParseMAC(src[0], src[1]); err != nil {
				return mac, err
			}
		}
	}
	return mac, nil
}

func (b *bridge) add(c *Call) (r *spec.Result, err error) {
	ns, err := c.openNetns()
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	if err := b.ipam.before(c); err != nil {
		return nil, err
	}
	err = c.with(func() error {
		if err := errors.Join(c.refuseSecond(), c.ready()); err != nil {
			return err
		}
		rec := c.record(ns)
		return c.net.Make(rec, func() error {
			r, err = b.attach(c, rec, ns)
			return err
		})
	})
	if err != nil && b.ipam != nil && b.ipam.foreign != "" {
		err = errors.Join(err, b.ipam.del(c))
	}
	return r, err
}

// attach makes the bridge, the veth and what is on it.
func (b *bridge) attach(c *Call, rec *state.Record, ns *netns.NS) (*spec.Result, error) {
	// 1. Addresses first, because they may fail.
	r := &spec.Result{}
	if b.ipam != nil {
		got, err := b.ipam.add(c, rec)
		if err != nil {
			return nil, err
		}
		r.IPs, r.Routes, r.DNS = got.IPs, got.Routes, got.DNS
		b.gateways(r)
	}
	if !c.conf.DNS.Empty() {
		r.DNS = c.conf.DNS
	}
	// 2. The bridge and its port.
	br, err := b.ensureBridge(c)
	if err != nil {
		return nil, err
	}
	host, inside, err := c.makeVeth(rec, ns, veth{mac: b.mac, mtu: b.MTU, master: br.Index})
	if err != nil {
		return nil, err
	}
	if err := b.configurePort(c, host, inside.MAC, rec.Alias()); err != nil {
		return nil, err
	}
	r.Interfaces = []spec.Interface{
		{Name: br.Name, MAC: br.MAC.String()},
		{Name: host.Name, MAC: host.MAC.String()},
		{Name: inside.Name, MAC: inside.MAC.String(), Sandbox: c.Netns},
	}
	// 3. Rules, before the container can send.
	if err := b.rules(c, rec, r); err != nil {
		return nil, err
	}
	// 4. The way out, and the container's end last.
	if b.IsGateway && b.ipam != nil {
		vlan, err := b.ensureGateway(c, br, r)
		if err != nil {
			return nil, err
		}
		if vlan != nil {
			r.Interfaces = append(r.Interfaces, *vlan)
		}
	}
	return r, b.configureInside(c, ns, inside.Index, r)
}

func (b *bridge) configureInside(c *Call, ns *netns.NS, index int32, r *spec.Result) error {
	if b.NoInterface {
		return nil
	}
	return inNetns(ns, func(conn *nlwire.Conn) error {
		if b.ipam == nil {
			return conn.Do([]nlwire.Op{rtnl.SetUp(index)})
		}
		dad := "0"
		if b.EnableDAD {
			dad = "1"
		}
		err := sysctls([2]string{"ipv6/conf/" + c.IfName + "/enhanced_dad", dad}, [2]string{"ipv6/conf/" + c.IfName + "/accept_dad", dad},
			[2]string{"ipv4/conf/" + c.IfName + "/arp_notify", "1"})
		if err := errors.Join(err, enableIPv6(c.IfName, r)); err != nil {
			return err
		}
		return configure(conn, index, r, b.EnableDAD)
	})
}

// gateways completes the IPAM's result: every address is on the container's interface, has a gateway if the bridge is
// one, and a default route if it is that.
func (b *bridge) gateways(r *spec.Result) {
	have := map[bool]bool{}
	for _, rt := range r.Routes {
		if rt.Dst.Bits() == 0 && rt.GW.IsValid() {
			have[rt.Dst.Addr().Is4()] = true
		}
	}
	for i := range r.IPs {
		ip := &r.IPs[i]
		ip.Interface = 2
		if !ip.Gateway.IsValid() && b.IsGateway {
			ip.Gateway = ip.Address.Masked().Addr().Next()
		}
		v4 := ip.Address.Addr().Is4()
		if b.IsDefaultGateway && !have[v4] {
			have[v4] = true
			r.Routes = append(r.Routes, spec.Route{Dst: netip.PrefixFrom(unspecified(v4), 0), GW: ip.Gateway})
		}
	}
}

func unspecified(v4 bool) netip.Addr {
	if v4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// ensureBridge makes the bridge, or takes the one that is there.
func (b *bridge) ensureBridge(c *Call) (rtnl.Link, error) {
	br, found, err := c.net.Link(b.Bridge)
	if err != nil {
		return br, err
	}
	if !found {
		if err := c.net.Route().Do([]nlwire.Op{rtnl.AddBridge(b.Bridge, macOf("bridge", b.Bridge, machineID()), b.MTU, len(b.vlans) > 0)}); err != nil {
			return br, vlanError(err)
		}
		// Its routes are ours: nobody else's advertisements are believed.
		if err := sysctls([2]string{"ipv6/conf/" + b.Bridge + "/accept_ra", "0"}); err != nil {
			return br, err
		}
		if br, found, err = c.net.Link(b.Bridge); err != nil || !found {
			return br, errors.Join(err, fmt.Errorf("bridge %s vanished", b.Bridge))
		}
	}
	if br.Kind != "bridge" {
		return br, spec.Errorf(spec.CodeConfig, "bridge %q exists and is a %s, not a bridge", b.Bridge, br.Kind)
	}
	var ops []nlwire.Op
	if !br.Up {
		ops = append(ops, rtnl.SetUp(br.Index))
	}
	if b.PromiscMode && !br.Promisc {
		yes := true
		ops = append(ops, rtnl.SetAttrs(br.Index, rtnl.Attrs{Promisc: &yes}))
	}
	return br, c.net.Route().Do(ops)
}

// configurePort sets what the port shall do that is not the default, its alias, its VLANs, and whether frames with
// another source than the container's MAC are dropped.
func (b *bridge) configurePort(c *Call, host rtnl.Link, mac rtnl.MAC, alias string) error {
	// A host port on 127.0.0.1, of this container or another, opens the bridge to 127/8.
	ops := append(loguard.Ops(host.Index), rtnl.SetAttrs(host.Index, rtnl.Attrs{Alias: &alias}))
	if b.HairpinMode || b.PortIsolation {
		ops = append(ops, rtnl.SetPort(host.Index, rtnl.Port{Hairpin: b.HairpinMode, Isolated: b.PortIsolation}))
	}
	if len(b.vlans) > 0 && !b.PreserveDefaultVlan {
		ops = append(ops, rtnl.DelVlan(host.Index, 1))
	}
	for _, v := range b.vlans {
		ops = append(ops, rtnl.AddVlan(host.Index, v))
	}
	if b.MacSpoofChk {
		ops = append(ops, loguard.OnlyMAC(host.Index, mac)...)
	}
	return vlanError(c.net.Route().Do(ops))
}

// rules are the masquerade of what leaves the container's own network and all others.
func (b *bridge) rules(c *Call, rec *state.Record, r *spec.Result) error {
	if !b.IPMasq || b.ipam == nil {
		return nil
	}
	return c.masquerade(rec, r, b.iptables)
}

// ensureGateway gives the bridge, or a port of its own in the VLAN, the gateway's addresses.
func (b *bridge) ensureGateway(c *Call, br rtnl.Link, r *spec.Result) (vlan *spec.Interface, err error) {
	l := br
	if b.Vlan != 0 {
		if l, err = b.ensureVlanLink(c, br); err != nil {
			return nil, err
		}
		vlan = &spec.Interface{Name: l.Name, MAC: l.MAC.String()}
	}
	for _, ip := range r.IPs {
		if err := b.ensureAddr(c, l, netip.PrefixFrom(ip.Gateway, ip.Address.Bits())); err != nil {
			return nil, err
		}
	}
	return vlan, c.forward(r)
}

// ensureAddr gives the bridge one address. Another one of IPv4, or of the same IPv6 network, is an error or, with
// forceAddress, taken off.
func (b *bridge) ensureAddr(c *Call, l rtnl.Link, want netip.Prefix) error {
	ms, err := c.net.Route().Query("list addresses", rtnl.DumpAddrs())
	if err != nil {
		return err
	}
	var ops []nlwire.Op
	for _, m := range ms {
		index, have, ok := rtnl.ParsePrefix(m)
		if !ok || index != l.Index || have.Addr().Is4() != want.Addr().Is4() || have.Addr().IsLinkLocalUnicast() {
			continue
		}
		if have == want {
			return nil
		}
		if have.Addr().Is6() && !have.Overlaps(want) {
			continue
		}
		if !b.ForceAddress {
			return spec.Errorf(spec.CodeConfig, "bridge %q already has an IP address different from %v: %v (take it off, or set forceAddress)", l.Name, want, have)
		}
		ops = append(ops, rtnl.DelAddr(l.Index, have))
	}
	mac := l.MAC // an address that was set stays, where one that was taken from a port changes with the ports
	ops = append(ops, rtnl.AddAddr(l.Index, want), rtnl.SetAttrs(l.Index, rtnl.Attrs{MAC: &mac}))
	return c.net.Route().Do(ops)
}

// delInterface is DEL of the types that make an interface: by the record, and without one by what the configuration and
// the namespace say.
func (c *Call) delInterface(i *ipam) error {
	if i != nil && i.foreign != "" {
		if err := i.del(c); err != nil {
			return err
		}
		i = nil
	}
	return c.with(func() error {
		found, err := c.removeRecord()
		if err != nil || found {
			return err
		}
		if err := errors.Join(c.delInside(), c.net.DeleteLink(c.vethName())); err != nil {
			return err
		}
		return i.del(c)
	})
}

// vlanError says why a request about VLANs failed.
func vlanError(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return spec.Errorf(spec.CodeField, "vlan and vlanTrunk need a kernel with VLAN filtering on bridges (CONFIG_BRIDGE_VLAN_FILTERING): %w", err)
	}
	return err
}
