package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// legacyRules are an attachment's rules for a node that must have iptables: what package ruleset says with one table's sets,
// said with chains of the attachment's own, named by its link.
//
//	raw  PREROUTING  -i LINK           ─▶ BTH-GUARD-…  its own address and MAC alone; nothing to 127/8, no advertisements
//	nat  PREROUTING, OUTPUT, to here   ─▶ BTH-PORTS ─▶ BTH-PORTIP-…, BTH-PORTS-…  host ports, of one address first
//	nat  POSTROUTING -s ADDRESS        ─▶ BTH-OUT-…    hairpins, then masquerade for what is in no pool
//	nat  POSTROUTING from 127/8 to it  ─▶ BTH-LOOP-…   the node's own connections to host ports
//
// kept are destinations that see the pod's own address.
func legacyRules(pod ruleset.Pod, kept []netip.Prefix) *iptables.Rules {
	change := func(v6 bool) *iptables.Change {
		l := legacy{pod: pod, v6: v6, id: strings.TrimPrefix(pod.Link, ruleset.LinkPrefix)}
		l.guard()
		l.ports()
		l.out(kept)
		return &l.change
	}
	return iptables.New(change(false), change(true))
}

type legacy struct {
	pod    ruleset.Pod
	v6     bool
	id     string
	change iptables.Change
}

func (l *legacy) addrs() []netip.Addr {
	return slices.DeleteFunc(slices.Clone(l.pod.Addrs), func(a netip.Addr) bool { return a.Is6() != l.v6 })
}

// own is a chain of the attachment's.
func (l *legacy) own(table, name string, rules ...string) iptables.Name {
	n := iptables.Name{Table: table, Chain: name + "-" + l.id}
	l.change.Own = append(l.change.Own, iptables.Chain{Name: n, Rules: rules})
	return n
}

// jump leads to a chain of the attachment's, from a hook's first place or its last.
func (l *legacy) jump(to iptables.Name, hook, match string, first bool) {
	l.change.Jumps = append(l.change.Jumps, iptables.Jump{
		Name: iptables.Name{Table: to.Table, Chain: hook}, Rule: strings.TrimSpace(match + " -j " + to.Chain), Mark: "-j " + to.Chain, First: first, Own: true,
	})
}

// guard is closed for a family of which the pod has no address.
func (l *legacy) guard() {
	rules := []string{"-d 127.0.0.0/8 -j DROP", "-p udp -m udp --dport 68 -j DROP", "-p icmp -m icmp --icmp-type 5 -j DROP", "-p icmp -m icmp --icmp-type 9 -j DROP"}
	if l.v6 {
		rules = []string{"-p udp -m udp --dport 546 -j DROP", "-p ipv6-icmp -m icmp6 --icmpv6-type 134 -j DROP", "-p ipv6-icmp -m icmp6 --icmpv6-type 137 -j DROP"}
	}
	m := l.pod.MAC
	mac := fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
	for _, a := range l.addrs() {
		rules = append(rules, "-s "+a.String()+" -m mac --mac-source "+mac+" -j RETURN")
	}
	l.jump(l.own("raw", "BTH-GUARD", append(rules, "-j DROP")...), "PREROUTING", "-i "+l.pod.Link, true)
}

func (l *legacy) ports() {
	var all, one []string
	for _, a := range l.addrs() {
		for _, hp := range l.pod.Ports {
			if hp.HostIP.IsValid() && hp.HostIP.Is4() != a.Is4() {
				continue
			}
			proto := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[hp.Proto]
			rule := fmt.Sprintf("-p %s -m %s --dport %d -j DNAT --to-destination %s", proto, proto, hp.Host, netip.AddrPortFrom(a, hp.Target))
			if hp.HostIP.IsValid() && !hp.HostIP.IsUnspecified() {
				one = append(one, "-d "+hp.HostIP.String()+" "+rule)
				continue
			}
			all = append(all, rule)
		}
	}
	if all == nil && one == nil {
		return
	}
	shared := iptables.Name{Table: "nat", Chain: "BTH-PORTS"}
	l.change.Shared = append(l.change.Shared, shared)
	for _, hook := range []string{"PREROUTING", "OUTPUT"} {
		match := ""
		if l.v6 && hook == "OUTPUT" {
			match = "! -d ::1/128 " // Linux does not route ::1 to a link
		}
		l.change.Jumps = append(l.change.Jumps, iptables.Jump{
			Name: iptables.Name{Table: "nat", Chain: hook}, Rule: match + "-m addrtype --dst-type LOCAL -j BTH-PORTS", Mark: "-j BTH-PORTS",
		})
	}
	if one != nil {
		l.jump(l.own("nat", "BTH-PORTIP", one...), shared.Chain, "", true)
	}
	if all != nil {
		l.jump(l.own("nat", "BTH-PORTS", all...), shared.Chain, "", false)
	}
}

func (l *legacy) out(kept []netip.Prefix) {
	addrs, serves := l.addrs(), len(l.pod.Ports) > 0 && !l.pod.NoSNAT
	if len(addrs) == 0 || !serves && !l.pod.Masquerade {
		return
	}
	var rules []string
	for _, a := range addrs {
		if serves {
			rules = append(rules, "-d "+a.String()+" -j MASQUERADE")
		}
	}
	if l.pod.Masquerade {
		for _, p := range append(ruleset.Multicast(), kept...) {
			if p.Addr().Is6() == l.v6 {
				rules = append(rules, "-d "+p.String()+" -j RETURN")
			}
		}
		rules = append(rules, "-j MASQUERADE --random-fully")
	}
	away := l.own("nat", "BTH-OUT", rules...)
	for _, a := range addrs {
		l.jump(away, "POSTROUTING", "-s "+a.String(), true)
	}
	if !serves || l.v6 {
		return
	}
	back := l.own("nat", "BTH-LOOP", "-j MASQUERADE")
	for _, a := range addrs {
		l.jump(back, "POSTROUTING", "-s 127.0.0.0/8 -d "+a.String(), true)
	}
}

// legacy says whether this network's rules go into iptables.
func (n *Network) legacy() bool { return n.conf.Backend == netconf.IPTables }

// refuseMixture fails if attachments of this node have their rules in the other backend: the table's guard takes pods that
// it does not know for strangers. nets are the networks that are known.
func (n *Network) refuseMixture(nets []state.Network) error {
	if !slices.ContainsFunc(nets, func(nw state.Network) bool { return nw.Legacy != n.legacy() }) {
		return nil
	}
	records, _, err := n.store.List()
	if err != nil {
		return err
	}
	for _, r := range records {
		other := r.Type == "" && r.IPTables != nil
		if n.legacy() {
			other = r.IPTables == nil && (r.Type == "" || len(ruleset.Elements(r.Pod)) > 0)
		}
		if other {
			return spec.Errorf(spec.CodeConfig, "backend: the rules of container %s of network %s are in the other one of nftables and iptables, and a node has one: drain it before the change", r.ContainerID, r.Network)
		}
	}
	return n.dropTable()
}

// dropTable takes the table of the other backend away, which has no pods left.
func (n *Network) dropTable() error {
	if !n.legacy() {
		return nil
	}
	if ok, err := n.nft.Has(ruleset.Table(), ruleset.Probe()); err != nil || !ok {
		return nil //nolint:nilerr // a kernel without nf_tables has no table
	}
	return n.nft.Commit([]nlwire.Op{ruleset.Table().Delete()})
}

// kept are the pools of all networks and what they exclude.
func (n *Network) kept() ([]netip.Prefix, error) {
	d, err := n.desired()
	return d.NoMasquerade, err
}

// mendLegacy puts rules of type berth back into iptables that somebody took out of them. all makes those of every pod anew:
// what they leave alone has changed.
func (n *Network) mendLegacy(all bool) error {
	records, _, err := n.store.List()
	if err != nil {
		return err
	}
	var kept []netip.Prefix
	saved := iptables.Saved{}
	for _, rec := range records {
		if rec.Type != "" || rec.IPTables == nil || rec.Pending {
			continue
		}
		if kept == nil {
			if kept, err = n.kept(); err != nil {
				return err
			}
		}
		rules := legacyRules(rec.Pod, kept)
		missing, err := saved.Missing(rules)
		if err == nil && (all || len(missing) > 0) {
			err = iptables.Ensure(rules)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// statusLegacy says whether this node can have rules in iptables, and mends those that are there.
func (n *Network) statusLegacy() error {
	err := iptables.Installed()
	if err == nil {
		err = n.mendLegacy(false)
	}
	if err != nil {
		return spec.Errorf(spec.CodeUnavailable, "backend iptables: %w", err)
	}
	return nil
}
