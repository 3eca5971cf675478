package podnet

import (
	"errors"
	"fmt"

	"github.com/berth-project/berth/cni/internal/forwarding"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/internal/failpoint"
)

var gcOne = failpoint.New("cni.gc.one")

// GC takes off every attachment of this network that the runtime does not list. It goes on after a failure and
// returns all of them.
func (n *Network) GC(valid []netconf.Attachment) error { return n.gc("", valid) }

func (n *Network) gc(typ string, valid []netconf.Attachment) error {
	keep := make(map[netconf.Attachment]bool, len(valid))
	for _, v := range valid {
		keep[v] = true
	}
	records, _, err := n.store.List()
	if err != nil {
		return err
	}
	var bad []error
	for _, r := range records {
		if r.Type != typ || r.Network != n.conf.Name || keep[netconf.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}] {
			continue
		}
		if err := errors.Join(n.remove(r), gcOne.Hit()); err != nil {
			bad = append(bad, fmt.Errorf("container %s, interface %s: %w", r.ContainerID, r.IfName, err))
		}
	}
	return errors.Join(bad...)
}

// statusRules says whether the kernel takes our rules, and puts them back if somebody flushed them.
func (n *Network) statusRules() error {
	if n.legacy() {
		return n.statusLegacy()
	}
	ok, err := n.nft.Has(ruleset.Table(), ruleset.Probe())
	if err == nil && ok {
		return nil
	}
	if err := n.rules(nil); err != nil {
		return spec.Errorf(spec.CodeUnavailable, "the kernel refuses the table inet %s (NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_FIB_INET and NF_CONNTRACK are needed): %w", ruleset.Table().Name, err)
	}
	return nil
}

// Status says whether ADD could be served now: the kernel has what is needed and every range has an address.
// On its way it collects attachments whose namespace died, and puts the table back if somebody flushed it.
func (n *Network) Status() error {
	if err := n.store.Begin(); err != nil {
		return err
	}
	n.collectDead()
	if err := n.statusRules(); err != nil {
		return err
	}
	if err := n.store.End(); err != nil {
		return err
	}
	obstacles, err := forwarding.Obstacles(n.nft)
	if err != nil {
		return err
	}
	for _, o := range obstacles { // whether its rules let pods' packets pass, only its owner knows: no reason to be down
		n.remark("%s: packets of pods are lost if its rules do not accept them", o)
	}
	free := map[bool]bool{}
	var why error
	for _, r := range n.conf.Ranges {
		p, err := n.pool(r.Subnet)
		if err != nil {
			return err
		}
		ok, err := p.Free(window(r))
		if err != nil {
			return err
		}
		v6 := r.Subnet.Addr().Is6()
		if free[v6] = free[v6] || ok; !ok {
			why = errors.Join(why, fmt.Errorf("no address is left in %s", r.Subnet))
		}
		if v6 && !ipv6Available() {
			return spec.Errorf(spec.CodeUnavailable, "range %s needs IPv6, which this kernel has not", r.Subnet)
		}
	}
	for _, ok := range free {
		if !ok {
			return spec.Errorf(spec.CodeUnavailable, "network %s: %w", n.conf.Name, why)
		}
	}
	return nil
}
