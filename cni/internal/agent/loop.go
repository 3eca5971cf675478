package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/berth-project/berth/cni/internal/datapath"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/overlay"
)

// Times of the loop: how long deliveries are gathered, the least time between two looks at the kernel that nobody but
// the kernel asked for, when a failed apply is tried again, and when everything is looked at without any reason.
const (
	gather   = 5 * time.Millisecond
	calm     = 100 * time.Millisecond
	retry    = time.Second
	patrol   = time.Minute
	kept     = 50 // changes in the history
	kept1    = 20 // lines of each
	noReason = ""
)

// loop is the only writer of the kernel and of a.live.
func (a *Agent) loop(ctx context.Context, kernel *datapath.Kernel, notify func(string)) {
	a.mu.Lock()
	a.live.started = time.Now()
	a.mu.Unlock()
	why, next := a.restore(), newAlarm(0)
	defer next.stop()
	if why == noReason {
		next.set(patrol)
	}
	var last time.Time
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case d := <-a.deliveries:
			if a.accept(d) {
				why = "a new fabric from " + a.source.Name()
				next.soon(gather)
			}
		case e := <-a.kernelSays:
			why = orElse(why, a.eventReason(kernel, e))
			next.soon(max(gather, calm-time.Since(last)))
		case <-a.speaker.Changed():
			why = "BGP routes changed"
			next.soon(gather)
		case <-a.test.Changed():
			why = "a device spoils checksums"
			next.soon(gather)
		case <-next.timer.C:
			a.speakAgain(time.Now())
			a.apply(ctx, kernel, orElse(why, "patrol"), notify)
			why, last = noReason, time.Now()
			a.mu.Lock()
			failed := a.live.failed != ""
			a.mu.Unlock()
			next.set(patrol)
			if failed {
				next.set(retry)
			}
		}
	}
}

// alarm is a timer that events bring nearer and never put off: a stream of them cannot keep the loop from its work.
type alarm struct {
	timer *time.Timer
	due   time.Time
}

func newAlarm(d time.Duration) *alarm { return &alarm{timer: time.NewTimer(d), due: time.Now().Add(d)} }

func (a *alarm) stop() { a.timer.Stop() }

func (a *alarm) set(d time.Duration) {
	a.due = time.Now().Add(d)
	a.timer.Reset(d)
}

func (a *alarm) soon(d time.Duration) {
	if time.Now().Add(d).Before(a.due) {
		a.set(d)
	}
}

func orElse(s, other string) string {
	if s == noReason {
		return other
	}
	return s
}

func (a *Agent) eventReason(kernel *datapath.Kernel, e datapath.Event) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case e.Lost:
		a.live.counts.overruns++
		kernel.TableBroken()
		return "the kernel had more to tell than fits"
	case e.Table:
		kernel.TableBroken()
		return "somebody changed the nftables table"
	case e.Objects:
		return "somebody changed a route or neighbour"
	}
	return "a link or an address changed"
}

// apply compiles, applies, and tells.
func (a *Agent) apply(ctx context.Context, kernel *datapath.Kernel, why string, notify func(string)) {
	a.mu.Lock()
	f, names := a.live.fabric, a.live.names
	a.mu.Unlock()
	if f == nil {
		return
	}
	start := time.Now()
	links, err := kernel.Links()
	plan := a.compile(f, names, links)
	var changes []string
	if err == nil {
		changes, err = a.carryOut(kernel, plan, f.Tunnel)
	}
	if err == nil {
		a.selfTest(ctx, plan, f.Tunnel, kernel.Tunnels())
		err = a.writeCNI(f, plan)
	}
	a.note(plan, why, changes, err, time.Since(start))
	if err == nil {
		a.announce(notify)
	}
}

// carryOut makes the kernel hold the plan. The agent's own tunnel comes before the routes that lead to it, and goes after
// they are gone.
func (a *Agent) carryOut(kernel *datapath.Kernel, plan *overlay.Plan, tunnel fabric.Tunnel) ([]string, error) {
	var changes, more []string
	var uerr error
	if plan.UDP != nil {
		changes, uerr = a.udp.Set(plan.UDP)
	}
	done, err := kernel.Apply(plan, tunnel)
	if plan.UDP == nil {
		more, uerr = a.udp.Set(nil)
	}
	return slices.Concat(changes, done, more), errors.Join(uerr, err)
}

func (a *Agent) compile(f *fabric.Fabric, names overlay.Names, links []overlay.Link) *overlay.Plan {
	if names == (overlay.Names{}) {
		names = overlay.DefaultNames()
	}
	return overlay.Compile(overlay.Input{
		Fabric: f, Self: a.conf.Node, Links: links, Learned: a.speaker.Learned(), Names: names,
		SoftChecksums: a.softChecksums(names),
	})
}

// note records what was done, and logs it unless there was nothing.
func (a *Agent) note(plan *overlay.Plan, why string, changes []string, err error, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &a.live
	v.plan = plan
	v.counts.applies++
	v.counts.changes += uint64(len(changes))
	v.counts.lastSeconds = took.Seconds()
	was := v.failed
	v.failed = ""
	if err != nil {
		v.failed = err.Error()
		v.counts.failures++
	} else {
		v.applied = time.Now()
	}
	if v.failed == was && (len(changes) == 0 || err != nil) {
		return // nothing, or the same again
	}
	c := Change{Time: time.Now(), Why: why, What: changes, Err: v.failed}
	if len(c.What) > kept1 {
		c.What, c.More = c.What[:kept1:kept1], len(changes)-kept1
	}
	v.history = append(v.history, c)
	v.history = v.history[max(0, len(v.history)-kept):]
	if err != nil {
		a.log.Error("applying", "why", why, "changes", len(changes), "error", err)
		return
	}
	a.log.Info("applied", "why", why, "changes", len(changes), "first", first(changes), "took", took.Round(time.Microsecond))
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// announce tells systemd once that the node's network is up.
func (a *Agent) announce(notify func(string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.live.ready {
		a.live.ready = true
		notify("READY=1")
	}
}

// restore takes the snapshot of the last good fabric, so that a node that starts without its source keeps, or gets back,
// what it had.
func (a *Agent) restore() (why string) {
	f, err := readSnapshot(a.snapshotFile())
	switch {
	case errors.Is(err, os.ErrNotExist):
		return noReason
	case err != nil:
		a.log.Warn("the snapshot cannot be used", "error", err)
		return noReason
	}
	if _, ok := f.Fabric.Node(a.conf.Node); !ok {
		a.log.Warn("the snapshot is another node's", "error", fmt.Errorf("node %q is not in it", a.conf.Node))
		return noReason
	}
	a.mu.Lock()
	a.live.fabric, a.live.names, a.live.from, a.live.taken = f.Fabric, f.Names, "snapshot", time.Now()
	a.mu.Unlock()
	a.speak()
	return "started with the snapshot"
}
