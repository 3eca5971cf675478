package podnet

import (
	"errors"
	"strings"

	"github.com/berth-project/berth/cni/internal/hostlocal"
	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/linkdel"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/state"
	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// The places where a test may end DEL, and every rollback.
var (
	delBegun    = failpoint.New("cni.del.begun")
	delLink     = failpoint.New("cni.del.link")
	delRules    = failpoint.New("cni.del.rules")
	delReleased = failpoint.New("cni.del.released")
	delRecord   = failpoint.New("cni.del.record")
	delFinished = failpoint.New("cni.del.finished")
)

// Del detaches a container. It needs neither namespace nor previous result, and what is gone already is no error.
// When it returns the interface is gone from the pod, should that live on, and the addresses rest.
func (n *Network) Del(a Attachment) error {
	link := state.LinkName(n.conf.Name, a.ContainerID, a.IfName)
	rec, err := n.store.Load(link)
	switch {
	case errors.Is(err, errs.NotFound):
		// Never added, deleted before, or the records were lost: the link's name is all there may be.
		return n.deleteLink(link)
	case errors.Is(err, atomicfile.ErrDamaged):
		return errors.Join(n.deleteLink(link), n.repair())
	case err != nil:
		return err
	}
	if !rec.Is(n.conf.Name, a.ContainerID, a.IfName) {
		return nil
	}
	return n.remove(rec)
}

// remove is detach as a change of its own.
func (n *Network) remove(rec *state.Record) error {
	if err := errors.Join(n.store.Begin(), delBegun.Hit()); err != nil {
		return err
	}
	if err := n.detach(rec); err != nil {
		return err // the change stays open, and the next verb repairs
	}
	return errors.Join(n.store.End(), delFinished.Hit())
}

// detach undoes attach, wherever that ended. The record goes last, and with it the knowledge of the rest.
func (n *Network) detach(rec *state.Record) error {
	// 1. The table: from here on the guard drops whatever the pod sends. If it has to be made again as a whole
	// that is done below, when the record is gone.
	if rec.IPTables != nil { // without its rules the pod would be open
		if err := n.deleteLinks(rec); err != nil {
			return err
		}
	}
	small, err := n.dropRules(rec)
	if err != nil {
		return err
	}
	if err := delRules.Hit(); err != nil {
		return err
	}
	// 2. The link, and with it every address, route and neighbour that was made for it.
	if err := errors.Join(n.deleteLinks(rec), delLink.Hit()); err != nil {
		return err
	}
	// 3. The addresses rest from now on.
	if err := n.releaseAll(rec); err != nil {
		return err
	}
	if err := errors.Join(n.flush(), n.flushFlows(rec, false), delReleased.Hit()); err != nil {
		return err
	}
	if err := errors.Join(n.store.Remove(rec.Name()), delRecord.Hit()); err != nil {
		return err
	}
	if small != nil {
		return n.rules(nil)
	}
	return nil
}

// dropRules takes an attachment's rules out. small is why the table has to be made again as a whole, once the record
// is gone.
func (n *Network) dropRules(rec *state.Record) (small, err error) {
	if rec.IPTables != nil {
		return nil, iptables.Remove(rec.IPTables)
	}
	if rec.Pod.Bridge != "" {
		return errShared, nil
	}
	if ops := ruleset.DelPod(rec.Pod); len(ops) > 0 {
		small = n.nft.Commit(ops)
		n.store.Deleted(uptime())
	}
	return small, nil
}

// errShared says that elements of an attachment may be others' too, so that only the records can tell what stays.
var errShared = errors.New("shared elements")

// releaseAll lets the addresses of an attachment rest: in our pools for type berth, else where host-local keeps them.
func (n *Network) releaseAll(rec *state.Record) error {
	if rec.Type == "" {
		for _, a := range rec.Addrs() {
			if err := n.release(a); err != nil {
				return err
			}
		}
		return nil
	}
	for _, l := range rec.Leases {
		d, err := n.Leases(l.Dir)
		if err == nil {
			err = d.Release(l.Addr, hostlocal.Holder{ContainerID: rec.ContainerID, IfName: rec.IfName})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteLinks deletes every link that goes with an attachment.
func (n *Network) deleteLinks(rec *state.Record) error {
	links := rec.Links
	if rec.Type == "" {
		links = append(links[:len(links):len(links)], rec.Pod.Link)
	}
	for _, l := range links {
		if err := n.deleteLink(l); err != nil {
			return err
		}
	}
	return nil
}

// deleteLink deletes a link of ours. One of the same name that carries another mark is somebody else's. Our
// nf_tables socket is left to the child that the deletion needs, because closing it would wait.
func (n *Network) deleteLink(name string) error {
	l, found, err := n.link(name)
	if err != nil {
		return err
	}
	if !found {
		return nil
	}
	if l.Alias != "" && !strings.HasPrefix(l.Alias, "berth ") {
		n.remark("link %s is marked %q and left alone", name, l.Alias)
		return nil
	}
	n.held = true
	return linkdel.Delete(n.way, l.Index, n.nft.FD())
}
