package node

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	failBeforeSpec    = failpoint.New("gpu.round.before_spec")
	failBeforePublish = failpoint.New("gpu.round.before_publish")
)

// round is one look at everything.
//
//  1. who is there: a driver that is slow at listing does not delay health
//  2. how are they: all GPUs at once, each with its own limit
//  3. what follows: health, offer
//  4. the specification on disk, before anybody hears of a new device
//  5. the new state, if anything but a figure has changed
func (n *Node) round(ctx context.Context) {
	old, _ := n.State()
	next := &State{Live: old.Live, Inventory: old.Inventory, Health: map[string]health.State{}, Samples: map[string]health.Sample{}}
	switch l, fresh := n.list(ctx); {
	case ctx.Err() != nil:
		return
	case l.err != nil:
		next.Problems = append(next.Problems, "the GPUs cannot be listed: "+l.err.Error())
	case fresh:
		n.bad = l.node.Clean()
		next.Live = true
		if all := n.keepLost(old, l.node); !reflect.DeepEqual(all, old.Inventory) {
			next.Inventory = all
		}
	}
	next.Problems = append(next.Problems, n.bad...)
	if n.comesUp(next) {
		next.Health, next.Samples = old.Health, old.Samples
	} else {
		n.look(ctx, old, next)
	}
	if ctx.Err() != nil {
		return
	}
	n.judge(next)
	if err := failBeforeSpec.Hit(); err != nil {
		next.Problems = append(next.Problems, err.Error())
	}
	if next.Live {
		problems := n.cdi.ensure(next.Inventory)
		for _, p := range problems {
			next.Problems = append(next.Problems, p.Error())
		}
		if next.Specified = n.cdi.usable; !next.Specified {
			next.Unspecified = problems[len(problems)-1].Error() // the one that kept it
		}
		n.withhold(next)
	}
	n.log(old, next)
	if err := errors.Join(n.save(old, next), failBeforePublish.Hit()); err != nil {
		n.cfg.Log.Error("the inventory cannot be cached: it will not be known before the driver answers after a restart", "error", err)
	}
	n.publish(next)
}

// listing is what the source answered to the question for its GPUs.
type listing struct {
	node *inventory.Node
	err  error
}

// patience is how long a round waits for the list before it goes on with what is known.
const patience = 100 * time.Millisecond

// list asks for the GPUs, one question at a time. An answer that comes late is taken by the round that it wakes;
// until then the last error, if there was one, stands.
func (n *Node) list(ctx context.Context) (l listing, fresh bool) {
	if !n.asking {
		n.asking = true
		n.late.Store(false)
		n.work.Go(func() {
			v, err := n.src.Inventory(ctx)
			n.lists <- listing{v, err}
			if n.late.Load() {
				n.Poke()
			}
		})
	}
	select {
	case l = <-n.lists:
		n.asking, n.listErr = false, l.err
		return l, l.err == nil
	case <-ctx.Done():
	case <-time.After(patience):
		n.late.Store(true)
	}
	return listing{err: n.listErr}, false
}

// keepLost adds the GPUs that were known and are not listed: they stay, unhealthy, until they are forgotten. A MIG
// instance that is not listed is gone at once: nothing can bring back that very one.
func (n *Node) keepLost(old *State, list *inventory.Node) *inventory.Node {
	for _, g := range old.Inventory.GPUs {
		if list.GPU(g.UUID) != nil {
			continue
		}
		since := old.Health[g.UUID]
		if old.Live && since.Phase == health.Sick && n.cfg.Now().Sub(since.Since) > n.cfg.Forget {
			continue
		}
		if !old.Live && len(list.GPUs) > 0 {
			continue // known from the cache alone, and the driver lists others: it was taken out while we were away
		}
		list.GPUs = append(list.GPUs, g)
		for _, l := range old.Inventory.Links {
			if l.A == g.UUID || l.B == g.UUID {
				list.Links = append(list.Links, l)
			}
		}
	}
	return list
}

// comesUp says whether the driver may not be there yet: it has not answered, nor failed for longer than a start takes. A
// look would find no GPU then, and a kubelet that starts refuses the pods of before a reboot whose devices are
// unhealthy. Nothing is given away meanwhile.
func (n *Node) comesUp(s *State) bool {
	return !s.Live && (n.listErr == nil || n.cfg.Now().Sub(n.started) < n.cfg.Start)
}

// look samples every GPU and steps its machine.
func (n *Node) look(ctx context.Context, old, next *State) {
	events, deaf := n.heard()
	if deaf != nil {
		next.Problems = append(next.Problems, "XIDs are not heard, GPUs are judged by samples alone: "+deaf.Error())
	}
	for _, e := range events { // one of a GPU that could not be named is for the samples to find
		x := health.LookUp(e.XID)
		n.cfg.Log.Warn("XID", "gpu", e.GPU, "xid", e.XID, "class", x.Class, "means", x.Name)
	}
	type result struct {
		sample health.Sample
		err    error
	}
	results := make([]result, len(next.Inventory.GPUs))
	var wg sync.WaitGroup
	for i, g := range next.Inventory.GPUs {
		wg.Go(func() {
			results[i].sample, results[i].err = n.src.Sample(ctx, discovery.Target{UUID: g.UUID, Bus: g.Bus})
		})
	}
	wg.Wait()
	for i, g := range next.Inventory.GPUs {
		in := health.Input{Now: n.cfg.Now(), Sample: &results[i].sample}
		switch err := results[i].err; {
		case errs.Of(err) == errs.NotFound:
			in.Sample = &health.Sample{Lost: true}
		case err != nil:
			in.Sample, in.Error = nil, err.Error()
		}
		for _, e := range events {
			if e.GPU == g.UUID {
				in.XIDs = append(in.XIDs, e.XID)
			}
		}
		next.Health[g.UUID] = health.Step(old.Health[g.UUID], in, n.cfg.Health)
		if in.Sample != nil {
			next.Samples[g.UUID] = *in.Sample
		}
	}
}

// judge makes the reasons and the offer.
func (n *Node) judge(s *State) {
	n.mu.Lock()
	p := n.policy
	n.mu.Unlock()
	s.Reasons = map[string]string{}
	for uuid, h := range s.Health {
		if why := h.Reason(n.cfg.Health); why != "" {
			s.Reasons[uuid] = why
		}
	}
	s.Plan = policy.Compile(s.Inventory, p, s.Reasons)
	for _, r := range s.Plan.Resources {
		for i := range r.Devices {
			d := &r.Devices[i]
			if r.Rule.Sharing == policy.MPS && d.Reason == "" {
				d.Reason = n.mps(r.Rule, *d)
			}
			if d.Reason == "" && n.cfg.Held != nil {
				d.Reason = n.cfg.Held(ledger.Offer{Resource: r.Rule.Name, Shares: r.Rule.Shares()}, d.ID)
				if d.Reason == "" && d.GPU != d.UUID { // somebody may have it whole, from before it was divided
					d.Reason = n.cfg.Held(ledger.Offer{}, d.GPU)
				}
			}
		}
	}
}

// mps says why a share has no daemon that serves it; "" if it has.
func (n *Node) mps(r policy.Rule, d policy.Device) string {
	switch {
	case r.ClientMemory(d) == 0:
		return "MPS: the GPU's memory is not known without NVML, nor a client's part of it: set memory_mib"
	case n.cfg.MPS != nil:
		return n.cfg.MPS(d.UUID)
	}
	return ""
}

// withhold marks the devices that no runtime could be told of: one that is broken does not keep the others back, a
// specification that cannot be used keeps all.
func (n *Node) withhold(s *State) {
	for _, r := range s.Plan.Resources {
		for i := range r.Devices {
			switch d := &r.Devices[i]; {
			case d.Reason != "":
			case !s.Specified:
				d.Reason = "no container can have it: " + s.Unspecified
			default:
				d.Reason = n.cdi.why(d.UUID)
			}
		}
	}
}

// log writes one line for each change an operator cares about.
func (n *Node) log(old, next *State) {
	for _, g := range next.Inventory.GPUs {
		was, is := old.Health[g.UUID].Phase, next.Health[g.UUID].Phase
		switch {
		case old.Inventory.GPU(g.UUID) == nil:
			n.cfg.Log.Info("GPU found", "gpu", g.UUID, "product", g.Product, "bus", g.Bus, "phase", is)
		case was != is:
			n.cfg.Log.Warn("GPU health", "gpu", g.UUID, "from", was, "to", is, "reason", next.Reasons[g.UUID])
		}
	}
	for _, g := range old.Inventory.GPUs {
		if next.Inventory.GPU(g.UUID) == nil {
			n.cfg.Log.Warn("GPU gone", "gpu", g.UUID)
		}
	}
	for _, p := range next.Problems {
		if !slices.Contains(old.Problems, p) {
			n.cfg.Log.Error("problem", "what", p)
		}
	}
	for _, u := range next.Plan.Unserved {
		if !slices.Contains(old.Plan.Unserved, u) {
			n.cfg.Log.Warn("device is not offered", "device", u.UUID, "why", u.Reason)
		}
	}
	if a, b := offered(old), offered(next); !reflect.DeepEqual(a, b) {
		n.cfg.Log.Info("offer", "resources", b)
	}
}

// offered counts devices, healthy of all.
func offered(s *State) []string {
	var all []string
	for _, r := range s.Plan.Resources {
		healthy := 0
		for _, d := range r.Devices {
			if d.Healthy() {
				healthy++
			}
		}
		all = append(all, fmt.Sprintf("%s=%d/%d", r.Rule.Name, healthy, len(r.Devices)))
	}
	return all
}
