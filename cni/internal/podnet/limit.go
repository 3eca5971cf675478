package podnet

import (
	"errors"
	"fmt"
	"strings"

	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"github.com/berth-project/berth/cni/internal/shape"
	"github.com/berth-project/berth/cni/internal/state"
)

// ifbName is the link that what a pod sends is led through, named as its host end is.
func ifbName(rec *state.Record) string {
	return "bti" + strings.TrimPrefix(rec.Pod.Link, ruleset.LinkPrefix)
}

// limit makes an attachment's bandwidth limits.
func (n *Network) limit(rec *state.Record) error {
	b := rec.Bandwidth
	if b == nil {
		return nil
	}
	host, found, err := n.link(rec.Pod.Link)
	if err != nil || !found {
		return errors.Join(err, fmt.Errorf("link %s vanished", rec.Pod.Link))
	}
	if b.IngressRate > 0 {
		if err := n.route.Do([]nlwire.Op{shape.Bucket(host.Index, shape.NewLimit(b.IngressRate, b.IngressBurst, rec.MTU))}); err != nil {
			return err
		}
	}
	if b.EgressRate == 0 {
		return nil
	}
	if err := n.route.Do([]nlwire.Op{shape.AddIFB(ifbName(rec), rec.MTU)}); err != nil {
		return err
	}
	ifb, found, err := n.link(ifbName(rec))
	if err != nil || !found {
		return errors.Join(err, fmt.Errorf("link %s vanished", ifbName(rec)))
	}
	alias := rec.Alias()
	return n.route.Do(append(shape.Redirect(host.Index, ifb.Index), rtnl.SetAttrs(ifb.Index, rtnl.Attrs{Alias: &alias}),
		shape.Bucket(ifb.Index, shape.NewLimit(b.EgressRate, b.EgressBurst, rec.MTU))))
}

// checkLimits says which of the limits is not there.
func (n *Network) checkLimits(rec *state.Record) error {
	b := rec.Bandwidth
	if b == nil {
		return nil
	}
	want := map[string]shape.Limit{}
	if b.IngressRate > 0 {
		want[rec.Pod.Link] = shape.NewLimit(b.IngressRate, b.IngressBurst, rec.MTU)
	}
	if b.EgressRate > 0 {
		want[ifbName(rec)] = shape.NewLimit(b.EgressRate, b.EgressBurst, rec.MTU)
	}
	ms, err := n.route.Query("list qdiscs", shape.Dump())
	if err != nil {
		return err
	}
	var bad []error
	for name, limit := range want {
		l, found, err := n.link(name)
		if err != nil {
			return err
		}
		ok := false
		for _, m := range ms {
			index, rate, queue, is := shape.Parse(m)
			ok = ok || found && is && index == l.Index && limit.Matches(rate, queue)
		}
		if !ok {
			bad = append(bad, wrong("link %s is not limited to %d bytes/s", name, limit.Rate))
		}
	}
	return errors.Join(bad...)
}
