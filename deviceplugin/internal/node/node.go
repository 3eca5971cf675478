// Package node is the domain: it keeps one node's GPUs known, judged, specified and offered. It asks a source for
// the inventory and for samples, steps the health machines, compiles the offer, writes the CDI specification, and
// publishes immutable states; servers read those and never wait for a driver.
//
//	source ─▶ inventory ─┐
//	source ─▶ samples ───┼─▶ health ─▶ policy ─▶ CDI on disk ─▶ State ─▶ device plugin, DRA, metrics, status
//	policy  (file) ──────┘
package node

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/ledger"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/proto/errs"
)

// Config is what a node is made of.
type Config struct {
	// Dir keeps the cached inventory and health.
	Dir string
	// BootID is the kernel's: health of another boot is forgotten, an inventory of another boot is only a list.
	BootID string
	Driver Driver
	CDIDir string
	Health health.Rules
	Poll   time.Duration
	// Start is how long the driver may take to come up: until then what is known from the cache is not judged.
	Start time.Duration
	// Forget is how long a GPU that is gone stays listed.
	Forget time.Duration
	Policy policy.Policy
	// MPS says why a GPU's MPS daemon does not serve, "" if it does; nil where there are none.
	MPS func(uuid string) string
	// Held says who keeps an id of an offer from being given away, "" if nobody does; nil where there is no ledger.
	Held func(o ledger.Offer, id string) string
	Log  *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Driver is where the driver is, and how its nodes and files are found.
type Driver struct {
	Root driver.Root
	// Dev is the node's /dev, DevView where this process sees it.
	Dev, DevView string
	Capabilities []driver.Capability
	// Majors reads the driver's device numbers.
	Majors func() (driver.Majors, error)
	// Optional makes a missing driver's files no problem: for a fake node, which has no driver.
	Optional bool
}

// State is everything that is known, at one moment. It is never changed once it is published.
type State struct {
	// Live says that the source has answered in this process's life; before that the inventory is the cached one.
	Live bool
	// Specified says that the CDI specification on disk is this state's; Unspecified why it is not, once Live.
	Specified   bool
	Unspecified string
	Inventory   *inventory.Node
	Health      map[string]health.State  // by GPU UUID
	Samples     map[string]health.Sample // the last ones
	Reasons     map[string]string        // of GPUs that may not be given away
	Plan        policy.Plan
	// Problems are what an operator should know.
	Problems []string
}

// Node keeps the state. Make it with New, run it with Run.
type Node struct {
	cfg Config
	src discovery.Source
	cdi specifier

	started time.Time

	// of Run's goroutine alone
	asking  bool     // a question for the list is out
	listErr error    // of the last answer
	bad     []string // what the last list held that is not understood
	lists   chan listing
	late    atomic.Bool
	work    sync.WaitGroup

	mu      sync.Mutex
	policy  policy.Policy
	state   *State
	changed chan struct{} // closed when state is replaced
	events  []health.Event
	deaf    error // why events are not heard
	wake    chan struct{}
}

// New makes a node with the cached inventory, if there is one.
func New(cfg Config, src discovery.Source) *Node {
	n := &Node{cfg: cfg, src: src, started: cfg.Now(), policy: cfg.Policy, changed: make(chan struct{}), wake: make(chan struct{}, 1), lists: make(chan listing, 1)}
	n.cdi = specifier{cfg: cfg.Driver, dir: cfg.CDIDir, now: cfg.Now}
	s := &State{Inventory: &inventory.Node{}, Health: map[string]health.State{}, Samples: map[string]health.Sample{}}
	if err := n.restore(s); err != nil {
		cfg.Log.Warn("the cached inventory is not used", "error", err)
	}
	n.judge(s)
	n.state = s
	return n
}

// State is the latest, with a channel that is closed when there is a newer one.
func (n *Node) State() (*State, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state, n.changed
}

// Await returns the first state that is live, if it is specified on disk. One that is not is Unavailable at once: only
// an operator can mend that, and the kubelet admits no other pod while it is kept waiting.
func (n *Node) Await(ctx context.Context) (*State, error) {
	for {
		s, changed := n.State()
		switch {
		case s.Live && s.Specified:
			return s, nil
		case s.Live:
			return nil, errs.Unavailable.Errorf("devices cannot be given away: %s", s.Unspecified)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			why := "the driver has not answered yet"
			if len(s.Problems) > 0 {
				why = s.Problems[0]
			}
			return nil, errs.Unavailable.Errorf("devices cannot be given away: %s", why)
		}
	}
}

// SetPolicy takes over another policy; it holds from the next state on, within one poll.
func (n *Node) SetPolicy(p policy.Policy) {
	n.mu.Lock()
	n.policy = p
	n.mu.Unlock()
	n.Poke()
}

// Policy is what holds now.
func (n *Node) Policy() policy.Policy {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policy
}

// Source is who is asked.
func (n *Node) Source() discovery.Source { return n.src }

// Rules are the health rules.
func (n *Node) Rules() health.Rules { return n.cfg.Health }

// Poke makes the next round begin now: something has changed that a round looks at.
func (n *Node) Poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run looks at everything each poll, and at once when the driver reports an event, until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	defer n.work.Wait()
	n.work.Go(func() { n.listen(ctx) })
	tick := time.NewTicker(n.cfg.Poll)
	defer tick.Stop()
	for {
		n.round(ctx)
		select { // a driver that reports without end does not keep us busy without end
		case <-ctx.Done():
			return nil
		case <-time.After(n.cfg.Poll / 20):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-n.wake:
		}
	}
}

// listen collects events; a source that fails is asked again after a poll, and is a problem until one waits again.
func (n *Node) listen(ctx context.Context) {
	for ctx.Err() == nil {
		waits := time.AfterFunc(n.cfg.Poll, func() { n.hear(nil, nil) })
		events, err := n.src.Events(ctx)
		waits.Stop()
		if ctx.Err() != nil {
			return
		}
		n.hear(events, err)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(n.cfg.Poll):
			}
			continue
		}
		n.Poke()
	}
}

// hear takes what a source said, or why it says nothing.
func (n *Node) hear(events []health.Event, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events, n.deaf = append(n.events, events...), err
}

// heard takes the events since the last call, with why there may be more that were not heard.
func (n *Node) heard() (events []health.Event, deaf error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	events, n.events = n.events, nil
	return events, n.deaf
}

// publish replaces the state.
func (n *Node) publish(s *State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = s
	close(n.changed)
	n.changed = make(chan struct{})
}
