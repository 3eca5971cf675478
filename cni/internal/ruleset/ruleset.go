// Package ruleset compiles what the plugin wants of nf_tables: one table, inet berth-node, with a fixed handful of
// rules and a few set elements per pod. There is no chain and no rule per pod, so a packet costs the same on an
// empty and on a full node, and ADD and DEL are one small transaction.
//
// The package is pure. What the rules do, hook by hook:
//
//	prerouting  raw     guard     from a pod's link only its own address and MAC; no way to 127/8; no router
//	                              advertisement, redirect or DHCP answer
//	prerouting  dstnat  ports-in  host ports, for destinations that are this node's own addresses
//	output      dstnat  ports-out the same for the node's own connections
//	forward     filter  isolate   nothing from one isolated bridge to another
//	postrouting srcnat  source    masquerade of hairpins, of 127.0.0.1, and of pods that leave all pools
package ruleset

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"golang.org/x/sys/unix"
)

// LinkPrefix begins the name of every pod's host end. The guard applies to all such links, so one that is in no
// set is closed.
const LinkPrefix = "bth"

// schema changes with every change of the rules or sets below; a table of another schema is replaced.
const schema = "schema-2"

// Table returns the table that the plugin owns.
func Table() nft.Table { return nft.Table{Name: "berth-node"} }

// HostPort is one mapping to a pod.
type HostPort struct {
	// HostIP limits the mapping to one address of the node; the zero Addr means all of the pod's families, an
	// unspecified address all of its family.
	HostIP netip.Addr
	// Proto is an IP protocol number: TCP, UDP or SCTP.
	Proto        byte
	Host, Target uint16
}

// Pod is one attachment.
type Pod struct {
	// Link is the name of the host end.
	Link  string
	MAC   [6]byte
	Addrs []netip.Addr
	// Masquerade says whether traffic that leaves all pools gets the node's address.
	Masquerade bool
	Ports      []HostPort

	// NoSNAT leaves the source of packets to host ports alone, also from the pod itself and from 127.0.0.1.
	NoSNAT bool `json:",omitempty"`
	// MasqueradePorts gives whatever comes by a host port the node's address.
	MasqueradePorts bool `json:",omitempty"`
	// Bridge is what the pod is attached to if nothing may come to it from such bridges of other networks; with
	// Isolated also nothing from its own.
	Bridge   string `json:",omitempty"`
	Isolated bool   `json:",omitempty"`
}

// Desired is everything the table holds.
type Desired struct {
	Pods []Pod
	// NoMasquerade are the pools of all networks, and what they exclude.
	NoMasquerade []netip.Prefix
	// Bridged are networks whose pods reach each other without passing this host: answers to what came by a host port
	// would not come back to it.
	Bridged []netip.Prefix
}

// Compile returns the transaction that makes the table from nothing or replaces it, atomically either way.
func Compile(d Desired) []nlwire.Op {
	t := Table()
	ops := []nlwire.Op{t.Add(), t.Delete(), t.Add()}
	for i, s := range sets() {
		ops = append(ops, t.AddSet(s, uint32(i+1)))
	}
	for _, c := range chains() {
		ops = append(ops, t.AddChain(c))
	}
	ops = append(ops, rules(t)...)
	es := append(intervals("no-masquerade", append(Multicast(), d.NoMasquerade...)), Probe())
	es = append(es, intervals("bridged", d.Bridged)...)
	for _, p := range d.Pods {
		es = append(es, Elements(p)...)
	}
	slices.SortStableFunc(es, func(a, b nft.Element) int {
		if a.Set < b.Set {
			return -1
		} else if a.Set > b.Set {
			return 1
		}
		return 0
	})
	return append(ops, t.AddElements(es)...)
}

// AddPod returns the transaction that adds one pod, if it has anything, to a table of this schema. On any other table it fails as a
// whole, and the caller replaces the table.
func AddPod(p Pod) []nlwire.Op {
	es := Elements(p)
	if len(es) == 0 {
		return nil
	}
	return Table().AddElements(append([]nft.Element{Probe()}, es...))
}

// DelPod returns the transaction that takes one pod out. It fails as a whole if an element is missing.
func DelPod(p Pod) []nlwire.Op {
	return Table().DeleteElements(Elements(p))
}

// Probe is the element that is there in every table of this schema.
func Probe() nft.Element { return nft.Element{Set: schema, Key: nft.Port(0)} }

// Elements lists a pod's elements.
func Elements(p Pod) []nft.Element {
	var es []nft.Element
	link := nft.Name16(p.Link)
	for _, a := range p.Addrs {
		fam, ip := suffix(a), a.AsSlice()
		if strings.HasPrefix(p.Link, LinkPrefix) {
			es = append(es, nft.Element{Set: "source" + fam, Key: nft.Join(link, p.MAC[:], ip)})
		}
		if p.Masquerade {
			es = append(es, nft.Element{Set: "masquerade" + fam, Key: ip})
		}
		if len(p.Ports) > 0 && !p.NoSNAT {
			es = append(es, nft.Element{Set: "hairpin" + fam, Key: nft.Join(ip, ip)})
		}
		for _, hp := range p.Ports {
			e, ok := portElement(hp, a)
			if !ok {
				continue
			}
			es = append(es, e)
			if p.MasqueradePorts {
				es = append(es, nft.Element{Set: "masquerade-port" + fam, Key: nft.Join(ip, []byte{hp.Proto}, nft.Port(hp.Target))})
			}
		}
	}
	if p.Bridge != "" {
		br, set := nft.Name16(p.Bridge), "same-bridge"
		if p.Isolated {
			set = "isolated-bridge"
		}
		es = append(es, nft.Element{Set: "bridge", Key: br}, nft.Element{Set: set, Key: nft.Join(br, br)})
	}
	return es
}

func portElement(hp HostPort, pod netip.Addr) (nft.Element, bool) {
	if hp.HostIP.IsValid() && hp.HostIP.Is4() != pod.Is4() {
		return nft.Element{}, false
	}
	e := nft.Element{Set: "port" + suffix(pod), Data: nft.Join(pod.AsSlice(), nft.Port(hp.Target))}
	if hp.HostIP.IsValid() && !hp.HostIP.IsUnspecified() {
		e.Set = "port-ip" + suffix(pod)
		e.Key = nft.Join(hp.HostIP.AsSlice())
	}
	e.Key = append(e.Key, nft.Join([]byte{hp.Proto}, nft.Port(hp.Host))...)
	return e, true
}

func suffix(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

func sets() []nft.Set {
	ss := []nft.Set{
		{Name: schema, Key: []nft.Type{nft.Service()}},
		{Name: "bridge", Key: []nft.Type{nft.IfName()}},
		{Name: "same-bridge", Key: []nft.Type{nft.IfName(), nft.IfName()}},
		{Name: "isolated-bridge", Key: []nft.Type{nft.IfName(), nft.IfName()}},
	}
	for _, f := range []struct {
		suffix string
		ip     nft.Type
	}{{"4", nft.IPv4()}, {"6", nft.IPv6()}} {
		one := []nft.Type{f.ip}
		target := []nft.Type{f.ip, nft.Service()}
		ss = append(ss,
			nft.Set{Name: "source" + f.suffix, Key: []nft.Type{nft.IfName(), nft.Ether(), f.ip}},
			nft.Set{Name: "masquerade" + f.suffix, Key: one},
			nft.Set{Name: "no-masquerade" + f.suffix, Key: one, Interval: true},
			nft.Set{Name: "bridged" + f.suffix, Key: one, Interval: true},
			nft.Set{Name: "hairpin" + f.suffix, Key: []nft.Type{f.ip, f.ip}},
			nft.Set{Name: "masquerade-port" + f.suffix, Key: []nft.Type{f.ip, nft.Proto(), nft.Service()}},
			nft.Set{Name: "port" + f.suffix, Key: []nft.Type{nft.Proto(), nft.Service()}, Data: target},
			nft.Set{Name: "port-ip" + f.suffix, Key: []nft.Type{f.ip, nft.Proto(), nft.Service()}, Data: target})
	}
	return ss
}

func chains() []nft.Chain {
	return []nft.Chain{
		{Name: "guard", Type: "filter", Hook: nft.HookPrerouting, Priority: nft.PriorityRaw},
		{Name: "ports"},
		{Name: "ports-in", Type: "nat", Hook: nft.HookPrerouting, Priority: nft.PriorityDstNAT},
		{Name: "ports-out", Type: "nat", Hook: nft.HookOutput, Priority: nft.PriorityDstNAT},
		{Name: "isolate", Type: "filter", Hook: nft.HookForward, Priority: nft.PriorityFilter},
		{Name: "source", Type: "nat", Hook: nft.HookPostrouting, Priority: nft.PrioritySrcNAT},
	}
}

// families are the two values that every rule is written for.
func families() [2]bool { return [2]bool{false, true} }

// ofFamily begins a rule for IPv4 or IPv6.
func ofFamily(v6 bool, more ...nft.Expr) []nft.Expr {
	fam := byte(unix.NFPROTO_IPV4)
	if v6 {
		fam = unix.NFPROTO_IPV6
	}
	return append([]nft.Expr{nft.Meta(nft.MetaNFProto, nft.R0), nft.Equal(nft.R0, fam)}, more...)
}
