package dropin

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/loguard"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
)

// portmap is the configuration of type portmap: ports of the host that lead to the container.
type portmap struct {
	Backend              string   `json:"backend"`
	SNAT                 *bool    `json:"snat"`
	ConditionsV4         []string `json:"conditionsV4"`
	ConditionsV6         []string `json:"conditionsV6"`
	MasqAll              bool     `json:"masqAll"`
	MarkMasqBit          *int     `json:"markMasqBit"`
	ExternalSetMarkChain *string  `json:"externalSetMarkChain"`

	ports    []netconf.Port
	iptables bool
}

func portmapPlugin() plugin {
	p := &portmap{}
	return plugin{parse: p.parse, add: p.add, check: p.check, del: del}
}

func (p *portmap) snat() bool { return p.SNAT == nil || *p.SNAT }

// defaultMarkBit is upstream's: Kubernetes has 14 and 15, Calico 20 to 31.
const defaultMarkBit = 13

func (p *portmap) mark() int {
	if p.MarkMasqBit == nil {
		return defaultMarkBit
	}
	return *p.MarkMasqBit
}

func (p *portmap) parse(c *Call) (err error) {
	if err = c.parse(p); err != nil {
		return err
	}
	if p.MarkMasqBit != nil && p.ExternalSetMarkChain != nil {
		return spec.Errorf(spec.CodeConfig, "externalSetMarkChain and markMasqBit cannot both be set")
	}
	if p.mark() < 0 || p.mark() > 31 {
		return spec.Errorf(spec.CodeConfig, "markMasqBit %d is not between 0 and 31", p.mark())
	}
	for i, m := range c.conf.RuntimeConfig.PortMappings {
		if m.HostPort == 0 {
			return spec.Errorf(spec.CodeConfig, "runtimeConfig.portMappings[%d]: hostPort 0 is not a port", i)
		}
	}
	if p.ports, err = netconf.ParsePorts(c.conf.RuntimeConfig.PortMappings); err != nil {
		return err
	}
	forced := ""
	if p.ExternalSetMarkChain != nil {
		forced = "externalSetMarkChain"
	}
	for _, f := range []struct {
		key   string
		words []string
	}{{"conditionsV4", p.ConditionsV4}, {"conditionsV6", p.ConditionsV6}} {
		if len(f.words) == 0 || f.words[0] == "" {
			continue
		}
		if !strings.HasPrefix(f.words[0], "-") && f.words[0] != "!" {
			return spec.Errorf(spec.CodeField, "unsupported key %q with value %q: conditions in nft's language are not supported, those of iptables are", f.key, f.words)
		}
		forced = f.key
	}
	p.iptables, err = c.backend("backend", p.Backend, forced)
	return err
}

func (p *portmap) add(c *Call) (*spec.Result, error) {
	r, err := c.chained()
	if err != nil || len(p.ports) == 0 {
		return nil, err
	}
	ns, err := c.openNetns()
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	return nil, c.with(func() error {
		if err := c.refuseSecond(); err != nil {
			return err
		}
		rec := c.record(ns)
		host, err := c.hostEnd(ns)
		if err == nil { // else no veth, such as a macvlan
			rec.Witness = host.Name
		}
		var subnets []netip.Prefix
		rec.Pod = ruleset.Pod{NoSNAT: !p.snat(), MasqueradePorts: p.MasqAll}
		for _, a := range c.sandboxAddrs(r) {
			rec.Pod.Addrs = append(rec.Pod.Addrs, a.Addr())
			if !a.IsSingleIP() {
				subnets = append(subnets, a.Masked())
			}
		}
		for _, hp := range p.ports {
			rec.Pod.Ports = append(rec.Pod.Ports, ruleset.HostPort{HostIP: hp.HostIP, Proto: hp.Proto, Host: hp.Host, Target: hp.Target})
		}
		if p.iptables {
			rec.IPTables = iptables.New(p.change(c, r, true), p.change(c, r, false))
		}
		return c.net.Make(rec, func() error {
			if err := c.net.Rules(rec, subnets...); err != nil {
				return err
			}
			// Where bridged packets pass the rules, what a container sends to its own host port is sent back to the port
			// it came from, which a bridge does only if it is told to.
			if host.Master != 0 && p.snat() {
				if err := c.net.Route().Do([]nlwire.Op{rtnl.SetHairpin(host.Index)}); err != nil {
					return err
				}
			}
			return p.openLocalhost(c, rec)
		})
	})
}

// openLocalhost lets packets from 127.0.0.1 through to the container's link, and closes the way back on it.
func (p *portmap) openLocalhost(c *Call, rec *state.Record) error {
	for _, a := range rec.Pod.Addrs {
		if !a.Is4() || !p.snat() {
			continue
		}
		ms, err := c.net.Route().Query("find the way to "+a.String(), rtnl.LookupRoute(a))
		if err != nil || len(ms) == 0 {
			return nil //nolint:nilerr // no way there: another plugin's container, with ports all the same
		}
		route, ok := rtnl.ParseRoute(ms[0])
		if !ok || route.Index <= 1 {
			return nil
		}
		if ms, err = c.net.Route().Query("look up the container's link", rtnl.GetLinkIndex(route.Index)); err != nil {
			return err
		}
		l, _ := rtnl.ParseLink(ms[0])
		if err := c.closeLocalhost(l); err != nil {
			c.net.Remark("host ports of container %s are not served on 127.0.0.1: %v", c.ContainerID, err)
			return nil
		}
		return sysctls([2]string{"ipv4/conf/" + l.Name + "/route_localnet", "1"})
	}
	return nil
}

// closeLocalhost drops what comes in at a link for 127/8: at a bridge's ports, because where bridged packets pass the
// rules, an answer's destination is 127.0.0.1 again when it comes in at the bridge itself.
func (c *Call) closeLocalhost(l rtnl.Link) error {
	if l.Kind != "bridge" {
		return c.net.Route().Do(loguard.Ops(l.Index))
	}
	ms, err := c.net.Route().Query("list links", rtnl.DumpLinks())
	if err != nil {
		return err
	}
	var ops []nlwire.Op
	for _, m := range ms {
		if port, ok := rtnl.ParseLink(m); ok && port.Master == l.Index {
			ops = append(ops, loguard.Ops(port.Index)...)
		}
	}
	return c.net.Route().Do(ops)
}

func (p *portmap) check(c *Call) error {
	if _, err := c.chained(); err != nil || len(p.ports) == 0 {
		return err
	}
	return c.with(func() error {
		rec, err := c.net.Find(c.Type, c.Attachment)
		if err == nil && rec == nil {
			err = mismatch("container %s, interface %s has no host ports", c.ContainerID, c.IfName)
		}
		if err != nil {
			return err
		}
		if len(rec.Pod.Ports) != len(p.ports) {
			return mismatch("container %s has %d host ports, not %d", c.ContainerID, len(rec.Pod.Ports), len(p.ports))
		}
		return c.net.CheckRules(rec)
	})
}

// change is upstream's chains for a family; nil if the container has no address of it.
func (p *portmap) change(c *Call, r *spec.Result, v4 bool) *iptables.Change {
	var pod netip.Prefix
	for _, a := range c.sandboxAddrs(r) {
		if a.Addr().Is4() == v4 {
			pod = a
		}
	}
	if !pod.IsValid() {
		return nil
	}
	nat := func(chain string) iptables.Name { return iptables.Name{Table: "nat", Chain: chain} }
	own := iptables.Chain{Name: nat(iptables.ChainName("CNI-DN-", c.conf.Name, c.ContainerID))}
	setMark := "CNI-HOSTPORT-SETMARK"
	if p.ExternalSetMarkChain != nil {
		setMark = *p.ExternalSetMarkChain
	}
	ch := &iptables.Change{Shared: []iptables.Name{nat("CNI-HOSTPORT-DNAT")}}
	for _, hook := range []string{"PREROUTING", "OUTPUT"} {
		ch.Jumps = append(ch.Jumps, iptables.Jump{Name: nat(hook), Rule: "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT", Mark: "-j CNI-HOSTPORT-DNAT"})
	}
	if p.snat() && p.ExternalSetMarkChain == nil {
		mark := fmt.Sprintf("%#x/%#x", 1<<p.mark(), 1<<p.mark())
		ch.Shared = append(ch.Shared, nat(setMark), nat("CNI-HOSTPORT-MASQ"))
		ch.Jumps = append(ch.Jumps,
			iptables.Jump{Name: nat(setMark), Rule: `-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark ` + mark, Mark: "-j MARK"},
			iptables.Jump{Name: nat("CNI-HOSTPORT-MASQ"), Rule: "-m mark --mark " + mark + " -j MASQUERADE", Mark: "-j MASQUERADE"},
			iptables.Jump{Name: nat("POSTROUTING"), Rule: `-m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ`, Mark: "-j CNI-HOSTPORT-MASQ", First: true})
	}
	conditions := strings.Join(p.ConditionsV4, " ")
	if !v4 {
		conditions = strings.Join(p.ConditionsV6, " ")
	}
	comment := iptables.Comment("dnat ", c.conf.Name, c.ContainerID)
	for _, hp := range p.ports {
		if hp.HostIP.IsValid() && hp.HostIP.Is4() != v4 {
			continue
		}
		proto := map[byte]string{6: "tcp", 17: "udp", 132: "sctp"}[hp.Proto]
		ch.Jumps = append(ch.Jumps, iptables.Jump{
			Name: nat("CNI-HOSTPORT-DNAT"), Own: true, Mark: "-j " + own.Chain,
			Rule: strings.Join(strings.Fields(fmt.Sprintf("-p %s -m comment --comment \"%s\" -m multiport --dports %d %s -j %s", proto, comment, hp.Host, conditions, own.Chain)), " "),
		})
		own.Rules = append(own.Rules, p.portRules(hp, proto, setMark, pod)...)
	}
	ch.Own = []iptables.Chain{own}
	return ch
}

// portRules mark what must be masqueraded and rewrite the destination.
func (p *portmap) portRules(hp netconf.Port, proto, setMark string, pod netip.Prefix) []string {
	base := "-p " + proto + " --dport " + strconv.Itoa(int(hp.Host))
	if hp.HostIP.IsValid() && !hp.HostIP.IsUnspecified() {
		base += " -d " + hp.HostIP.String()
	}
	from := pod.Masked()
	if p.MasqAll {
		from = netip.PrefixFrom(unspecified(pod.Addr().Is4()), 0)
	}
	var out []string
	if p.snat() {
		out = append(out, base+" -s "+from.String()+" -j "+setMark)
		if pod.Addr().Is4() && !p.MasqAll {
			out = append(out, base+" -s 127.0.0.1 -j "+setMark)
		}
	}
	return append(out, base+" -j DNAT --to-destination "+netip.AddrPortFrom(pod.Addr(), hp.Target).String())
}
