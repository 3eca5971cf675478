package podnet

import (
	"encoding/hex"
	"errors"
	"hash/fnv"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-project/berth/cni/internal/hostlocal"
	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// What follows is for the plugins under upstream's names (package dropin): they decide what an attachment has, and
// its record, rules, teardown and repair are the same as type berth's.

// The places where a test may end an upstream plugin's ADD; the teardown's are those of type berth.
var (
	partBegun  = failpoint.New("part.add.begun")
	partSaved  = failpoint.New("part.add.saved")
	partMade   = failpoint.New("part.add.made")
	partCommit = failpoint.New("part.add.commit")
)

// Find loads the record of a type's attachment; nil if there is none.
func (n *Network) Find(typ string, a Attachment) (*state.Record, error) {
	rec, err := n.store.Load(state.Name(typ, n.conf.Name, a.ContainerID, a.IfName))
	if errors.Is(err, errs.NotFound) {
		return nil, nil //nolint:nilnil // documented
	}
	return rec, err
}

// Make makes an attachment as do says, which fills in the record and calls [Network.Save] before each step that
// the record must tell of. If it fails, everything in the record is undone.
func (n *Network) Make(rec *state.Record, do func() error) error {
	rec.Created = time.Now().Unix()
	if err := errors.Join(n.store.Begin(), partBegun.Hit()); err != nil {
		return err
	}
	err := errors.Join(n.store.Save(rec), partSaved.Hit())
	if err == nil {
		err = errors.Join(do(), partMade.Hit())
	}
	if err == nil {
		err = errors.Join(n.store.Commit(rec), partCommit.Hit())
	}
	if err != nil {
		err = errors.Join(err, n.detach(rec))
	}
	return errors.Join(err, n.store.End())
}

// Save writes a record that [Network.Make] is making.
func (n *Network) Save(rec *state.Record) error { return n.store.Save(rec) }

// Remove takes an attachment off, with everything in its record.
func (n *Network) Remove(rec *state.Record) error { return n.remove(rec) }

// Rules puts an attachment's elements into the table, or its rules into iptables if it has such. subnets are not to
// be masqueraded when they are the destination.
func (n *Network) Rules(rec *state.Record, subnets ...netip.Prefix) error {
	if rec.IPTables != nil {
		return errors.Join(iptables.Ensure(rec.IPTables), n.flushFlows(rec, true))
	}
	nets, err := n.store.Networks()
	if err != nil {
		return err
	}
	if err := n.refuseMixture(nets); err != nil {
		return err
	}
	changed := false
	if len(subnets) > 0 {
		var err error
		if changed, err = n.store.AddSubnets(n.conf.Name+"@chain", subnets); err != nil {
			return err
		}
	}
	small := ruleset.AddPod(rec.Pod)
	if len(small) == 0 && !changed {
		return nil
	}
	if changed {
		small = nil
	}
	if err := n.checkPorts(rec); err != nil {
		return err
	}
	return errors.Join(n.rules(small), n.flushFlows(rec, true))
}

// CheckRules says what of an attachment's rules is missing.
func (n *Network) CheckRules(rec *state.Record) error {
	if rec.IPTables == nil {
		return n.checkTable(rec)
	}
	missing, err := iptables.Missing(rec.IPTables)
	if err == nil && len(missing) > 0 {
		err = wrong("missing in %v", missing)
	}
	return err
}

// Collect takes off what is dead, and makes the table again if somebody flushed it and there is anything for it.
func (n *Network) Collect() error {
	if err := n.store.Begin(); err != nil {
		return err
	}
	n.collectDead()
	ok, err := n.nft.Has(ruleset.Table(), ruleset.Probe())
	if err != nil || !ok {
		if err := n.restore(); err != nil {
			return err
		}
	}
	return n.store.End()
}

// restore makes the table again. On a node that has no attachment with rules it is not made, unless a network of type
// berth is being served, and one of another schema is taken away.
func (n *Network) restore() error {
	if err := n.mendLegacy(false); err != nil {
		return err
	}
	d, err := n.desired()
	if err != nil {
		return err
	}
	if n.legacy() && len(d.Pods) == 0 {
		return n.dropTable()
	}
	if len(n.conf.Ranges) == 0 && !slices.ContainsFunc(d.Pods, func(p ruleset.Pod) bool { return len(ruleset.Elements(p)) > 0 }) {
		if ok, err := n.nft.Has(ruleset.Table(), ruleset.Probe()); err != nil || !ok {
			return errors.Join(err, n.nft.Commit([]nlwire.Op{ruleset.Table().Add(), ruleset.Table().Delete()}))
		}
	}
	return n.nft.Commit(ruleset.Compile(d))
}

// CollectDead takes off what is dead within a change that is under way, and returns how many there were.
func (n *Network) CollectDead() int { return n.collectDead() }

// GCType takes off every attachment of a type and this network that the runtime does not list.
func (n *Network) GCType(typ string, valid []netconf.Attachment) error { return n.gc(typ, valid) }

// Route is the socket to rtnetlink in the host's namespace.
func (n *Network) Route() *nlwire.Conn { return n.route }

// Link looks up a link by name in the host's namespace.
func (n *Network) Link(name string) (rtnl.Link, bool, error) { return n.link(name) }

// DeleteLink deletes a link of the host by name, if it is ours; a missing one is no error.
func (n *Network) DeleteLink(name string) error { return n.deleteLink(name) }

// Remark writes a line for the node's administrator.
func (n *Network) Remark(format string, args ...any) { n.remark(format, args...) }

// Leases opens a directory of leases, once; [Network.Close] closes it.
func (n *Network) Leases(dir string) (*hostlocal.Dir, error) {
	if d := n.leases[dir]; d != nil {
		return d, nil
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(dir)) // cannot fail
	d, err := hostlocal.Open(dir, filepath.Join(n.store.Leases(), hex.EncodeToString(h.Sum(nil))))
	if err != nil {
		return nil, err
	}
	d.Now, d.Cooldown = now(), n.conf.Cooldown()
	n.leases[dir] = d
	return d, nil
}
