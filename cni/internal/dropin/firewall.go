package dropin

import (
	"net/netip"

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
)

// firewall is the configuration of type firewall: forwarding for the container is allowed, and bridges can be kept
// apart. In nftables there is nothing to allow: what another table drops, none can accept.
type firewall struct {
	Backend        string `json:"backend"`
	AdminChain     string `json:"iptablesAdminChainName"`
	FirewalldZone  string `json:"firewalldZone"`
	IngressPolicy  string `json:"ingressPolicy"`
	iptables       bool
	keptApart, own bool
}

func firewallPlugin() plugin {
	f := &firewall{}
	return plugin{since: "0.4.0", parse: f.parse, add: f.add, check: f.check, del: del}
}

func (f *firewall) parse(c *Call) (err error) {
	if err = c.parse(f); err != nil {
		return err
	}
	switch f.IngressPolicy {
	case "", "open":
	case "same-bridge":
		f.keptApart = true
	case "isolated":
		f.keptApart, f.own = true, true
	default:
		return spec.Errorf(spec.CodeConfig, "ingressPolicy %q is none of open, same-bridge, isolated", f.IngressPolicy)
	}
	if f.Backend == "firewalld" {
		return spec.Errorf(spec.CodeField, "unsupported key \"backend\" with value \"firewalld\": use nftables or iptables, which firewalld leaves alone")
	}
	forced := ""
	if f.AdminChain != "" {
		forced = "iptablesAdminChainName"
	} else {
		f.AdminChain = "CNI-ADMIN"
	}
	f.iptables, err = c.backend("backend", f.Backend, forced)
	return err
}

func (f *firewall) add(c *Call) (*spec.Result, error) {
	r, err := c.chained()
	if err != nil {
		return nil, err
	}
	bridge := ""
	if f.keptApart {
		if len(r.Interfaces) == 0 || r.Interfaces[0].Name == "" {
			return nil, spec.Errorf(spec.CodeConfig, "ingressPolicy %q: prevResult has no interface: put type firewall behind type bridge", f.IngressPolicy)
		}
		bridge = r.Interfaces[0].Name
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
		if host, err := c.hostEnd(ns); err == nil {
			rec.Witness = host.Name
		}
		if f.iptables {
			rec.IPTables = iptables.New(f.change(r, bridge, true), f.change(r, bridge, false))
		} else {
			rec.Pod.Bridge, rec.Pod.Isolated = bridge, f.own
		}
		return c.net.Make(rec, func() error {
			if err := c.net.Rules(rec); err != nil || !f.own {
				return err
			}
			return f.seeBridged(c, bridge)
		})
	})
}

// seeBridged makes what goes from port to port of the bridge pass the rules. It is this bridge's own setting, not the
// machine's.
func (f *firewall) seeBridged(c *Call, bridge string) error {
	l, found, err := c.net.Link(bridge)
	if err != nil || !found || l.Kind != "bridge" {
		return err
	}
	return c.net.Route().Do([]nlwire.Op{rtnl.FilterBridge(l.Index)})
}

func (f *firewall) check(c *Call) error {
	if _, err := c.chained(); err != nil {
		return err
	}
	return c.with(func() error {
		rec, err := c.net.Find(c.Type, c.Attachment)
		if err == nil && rec == nil {
			err = mismatch("container %s, interface %s has no rules of type firewall", c.ContainerID, c.IfName)
		}
		if err != nil {
			return err
		}
		return c.net.CheckRules(rec)
	})
}

const (
	stage1      = "CNI-ISOLATION-STAGE-1"
	stage2      = "CNI-ISOLATION-STAGE-2"
	fwdChain    = "CNI-FORWARD"
	fwdComment  = `-m comment --comment "CNI firewall plugin rules"`
	isolComment = `-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"`
)

// change is upstream's chains for a family; nil if the result has no address of it.
func (f *firewall) change(r *spec.Result, bridge string, v4 bool) *iptables.Change {
	filter := func(chain string) iptables.Name { return iptables.Name{Table: "filter", Chain: chain} }
	ch := &iptables.Change{Shared: []iptables.Name{filter(fwdChain), filter(f.AdminChain)}}
	ch.Jumps = []iptables.Jump{
		{Name: filter("FORWARD"), First: true, Rule: fwdComment + " -j " + fwdChain, Mark: "-j " + fwdChain},
		{
			Name: filter(fwdChain), First: true, Mark: "-j " + f.AdminChain,
			Rule: `-m comment --comment "CNI firewall plugin admin overrides" -j ` + f.AdminChain,
		},
	}
	some := false
	for _, ip := range r.IPs {
		a := ip.Address.Addr()
		if a.Is4() != v4 {
			continue
		}
		some = true
		one := netip.PrefixFrom(a, a.BitLen()).String()
		ch.Jumps = append(ch.Jumps,
			iptables.Jump{
				Name: filter(fwdChain), Own: true, Mark: "-d " + one + " -m conntrack",
				Rule: "-d " + one + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			},
			iptables.Jump{Name: filter(fwdChain), Own: true, Rule: "-s " + one + " -j ACCEPT", Mark: "-s " + one + " -j ACCEPT"})
	}
	if !some {
		return nil
	}
	if bridge == "" {
		return ch
	}
	// In the order that makes each one first: the stage's jump before CNI-FORWARD, a bridge's rules before RETURN.
	ch.Shared = append(ch.Shared, filter(stage1), filter(stage2))
	ch.Jumps = append(ch.Jumps,
		iptables.Jump{Name: filter("FORWARD"), First: true, Rule: isolComment + " -j " + stage1, Mark: "-j " + stage1},
		iptables.Jump{
			Name: filter(stage1), First: true, Mark: "-i " + bridge + " ! -o " + bridge,
			Rule: "-i " + bridge + " ! -o " + bridge + " " + isolComment + " -j " + stage2,
		},
		iptables.Jump{Name: filter(stage2), First: true, Rule: "-o " + bridge + " " + isolComment + " -j DROP", Mark: "-o " + bridge + " "})
	if f.own {
		ch.Jumps = append(ch.Jumps, iptables.Jump{
			Name: filter(stage1), First: true, Rule: "-i " + bridge + " -o " + bridge + " " + isolComment + " -j DROP",
			Mark: "-i " + bridge + " -o " + bridge,
		})
	}
	return ch
}
