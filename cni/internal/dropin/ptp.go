package dropin

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// ptp is the configuration of type ptp: a veth with the gateway's address on the host's end and a route to the
// container there.
type ptp struct {
	IPMasq        bool   `json:"ipMasq"`
	IPMasqBackend string `json:"ipMasqBackend"`
	MTU           int    `json:"mtu"`

	iptables bool
	ipam     *ipam
}

func ptpPlugin() plugin {
	p := &ptp{}
	return plugin{
		parse:  p.parse,
		add:    p.add,
		check:  p.check,
		del:    func(c *Call) error { return c.delInterface(p.ipam) },
		status: func(c *Call) error { return p.ipam.status(c) },
		gc:     func(c *Call) error { return p.ipam.gc(c) },
	}
}

func (p *ptp) parse(c *Call) (err error) {
	if err = c.parse(p); err != nil {
		return err
	}
	if p.MTU < 0 || p.MTU > 65535 {
		return spec.Errorf(spec.CodeConfig, "mtu %d is not between 0 and 65535", p.MTU)
	}
	if p.IPMasq {
		if p.iptables, err = c.backend("ipMasqBackend", p.IPMasqBackend, ""); err != nil {
			return err
		}
	}
	if p.ipam, err = c.parseIPAM(); err == nil && p.ipam == nil {
		err = spec.Errorf(spec.CodeConfig, "ipam.type is missing: type ptp needs addresses")
	}
	return err
}

func (p *ptp) add(c *Call) (r *spec.Result, err error) {
	ns, err := c.openNetns()
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	if err := p.ipam.before(c); err != nil {
		return nil, err
	}
	err = c.with(func() error {
		if err := errors.Join(c.refuseSecond(), c.ready()); err != nil {
			return err
		}
		rec := c.record(ns)
		return c.net.Make(rec, func() error {
			r, err = p.attach(c, rec, ns)
			return err
		})
	})
	if err != nil && p.ipam.foreign != "" {
		err = errors.Join(err, p.ipam.del(c))
	}
	return r, err
}

func (p *ptp) attach(c *Call, rec *state.Record, ns *netns.NS) (*spec.Result, error) {
	r, err := p.ipam.add(c, rec)
	if err != nil {
		return nil, err
	}
	for i, ip := range r.IPs {
		if !ip.Gateway.IsValid() {
			return nil, spec.Errorf(spec.CodeConfig, "address %s has no gateway: type ptp needs one", ip.Address)
		}
		r.IPs[i].Interface = 1
	}
	if !c.conf.DNS.Empty() {
		r.DNS = c.conf.DNS
	}
	if err := c.forward(r); err != nil {
		return nil, err
	}
	host, inside, err := c.makeVeth(rec, ns, veth{mtu: p.MTU})
	if err != nil {
		return nil, err
	}
	r.Interfaces = []spec.Interface{
		{Name: host.Name, MAC: host.MAC.String()}, {Name: inside.Name, MAC: inside.MAC.String(), Sandbox: c.Netns},
	}
	if p.IPMasq {
		if err := c.masquerade(rec, r, p.iptables); err != nil {
			return nil, err
		}
	}
	if err := c.net.Route().Do(ptpHost(host.Index, rec.Alias(), r)); err != nil {
		return nil, err
	}
	return r, inNetns(ns, func(conn *nlwire.Conn) error {
		if err := enableIPv6(c.IfName, r); err != nil {
			return err
		}
		if err := sysctls([2]string{"ipv6/conf/" + c.IfName + "/accept_dad", "0"}); err != nil {
			return err
		}
		return ptpInside(conn, inside.Index, r)
	})
}

// ptpHost gives the host's end the gateway's address and a route to each address of the container.
func ptpHost(index int32, alias string, r *spec.Result) []nlwire.Op {
	ops := []nlwire.Op{rtnl.SetAttrs(index, rtnl.Attrs{Alias: &alias})}
	for _, ip := range r.IPs {
		a := ip.Address.Addr()
		route := rtnl.AddRoute(rtnl.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Index: index, Protocol: unix.RTPROT_BOOT})
		route.Tolerate = []unix.Errno{unix.EEXIST}
		ops = append(ops, rtnl.AddAddr(index, netip.PrefixFrom(ip.Gateway, ip.Gateway.BitLen())), route)
	}
	return ops
}

// ptpInside leads everything but the gateway itself by the gateway: the subnet's own route, which the address
// brought, is replaced.
func ptpInside(conn *nlwire.Conn, index int32, r *spec.Result) error {
	if err := configure(conn, index, &spec.Result{IPs: r.IPs}, false); err != nil {
		return err
	}
	var ops []nlwire.Op
	for _, ip := range r.IPs {
		a, gw := ip.Address.Addr(), ip.Gateway
		if !ip.Address.IsSingleIP() {
			ops = append(ops, rtnl.DelRoute(rtnl.Route{Dst: ip.Address.Masked(), Index: index}))
		}
		ops = append(ops, rtnl.AddRoute(rtnl.Route{Dst: netip.PrefixFrom(gw, gw.BitLen()), Index: index, Source: a, Protocol: unix.RTPROT_BOOT}))
		if !ip.Address.IsSingleIP() {
			ops = append(ops, rtnl.AddRoute(rtnl.Route{Dst: ip.Address.Masked(), Gateway: gw, Source: a, Index: index, Protocol: unix.RTPROT_BOOT}))
		}
	}
	if err := conn.Do(ops); err != nil {
		return err
	}
	routes := slices.Clone(r.Routes) // the result keeps routes as IPAM gave them
	for i, rt := range routes {
		if !rt.GW.IsValid() {
			routes[i].GW = gatewayOf(r, rt.Dst.Addr().Is4())
		}
	}
	return configure(conn, index, &spec.Result{Routes: routes}, false)
}

// gatewayOf is the first gateway of a family.
func gatewayOf(r *spec.Result, v4 bool) netip.Addr {
	for _, ip := range r.IPs {
		if ip.Address.Addr().Is4() == v4 && ip.Gateway.IsValid() {
			return ip.Gateway
		}
	}
	return netip.Addr{}
}
