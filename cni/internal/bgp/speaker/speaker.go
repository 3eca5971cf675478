// Package speaker is the agent's side of BGP: it starts berth-bgp as another user, tells it what to be, checks what it
// reports, starts it again when it dies, and keeps what was learned while it is away. It knows no BGP and no route of
// the kernel.
//
//	       Set(enabled)          hello, applied
//	none ───────────────▶ starting ───────▶ running ──┐ dies, hangs, lies
//	 ▲                       ▲                        │ (what it learned stays, stale)
//	 │ Set(disabled): Cease  └───── backoff ◀─────────┘
//	 └──────────────────────────────── any
//
// Stale routes go when the new child says of their peer that it has said all it knows (End-of-RIB), and at the latest
// when the graceful restart time is over.
package speaker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

// Options are what a Speaker needs besides its configuration.
type Options struct {
	// Program is the path of berth-bgp, which UID must be able to execute.
	Program string
	// UID and GID are whom it runs as; not 0, and no other program's.
	UID, GID uint32
	// Log takes the child's warnings and the supervisor's.
	Log *slog.Logger
	// Kept are routes that an earlier agent's speaker learned, less than Config.Restart.Time ago, and that the kernel
	// still has. They make the first child tell its peers that it has restarted (RFC 4724 §4.1). Nil is a first start;
	// nothing learned, but a restart all the same, is an empty slice.
	Kept []bgp.Route
}

// Speaker is BGP as the agent sees it. All methods but Run may be called at any time by anyone.
type Speaker struct {
	opt     Options
	changed chan struct{} // holds one
	wake    chan struct{} // holds one: the configuration changed

	mu        sync.Mutex
	config    bgp.Config
	version   uint64 // of config
	table     *table
	status    bgp.Status
	restarted bool // the next child follows one whose routes are intact
}

// New makes a Speaker; Run starts it.
func New(o Options) *Speaker {
	s := &Speaker{opt: o, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), table: newTable(), restarted: o.Kept != nil}
	s.table.keep(o.Kept)
	return s
}

// Set is what the speaker shall be from now on. It returns at once; an invalid configuration is refused, and what was
// set before goes on.
func (s *Speaker) Set(c bgp.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	s.config = c
	s.version++
	s.table.configure(c, time.Now())
	s.mu.Unlock()
	poke(s.wake)
	poke(s.changed)
	return nil
}

// Changed gets a value some time after Routes or Status have changed, however often they did.
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

// Routes are what is known now, in the order of their prefixes; paths that outlive the child that learned them are
// stale. The slice is the caller's.
func (s *Speaker) Routes() []bgp.Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.routes()
}

// Status is how the child and its sessions fare. Without a child, peers are as they were last known, but idle.
func (s *Speaker) Status() bgp.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Refused = s.table.refused
	st.Peers = append([]bgp.PeerStatus(nil), st.Peers...)
	return st
}

// Backoff between children that die.
const (
	firstPause = 50 * time.Millisecond
	longPause  = 10 * time.Second
	steady     = 30 * time.Second // a child that lived so long starts the backoff anew
)

// Run keeps a child alive as long as the configuration asks for BGP, until ctx ends. Then the child leaves without a
// word, so that peers keep our routes for the restart time, and Run returns nil.
func (s *Speaker) Run(ctx context.Context) error {
	var sweeper sync.WaitGroup
	sweeper.Go(func() { s.sweep(ctx) })
	defer sweeper.Wait()
	pause := firstPause
	for {
		if !s.enabled() {
			select {
			case <-ctx.Done():
				return nil
			case <-s.wake:
				continue
			}
		}
		began := time.Now()
		err := s.runChild(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			s.ceased()
			pause = firstPause
			continue
		}
		s.died(err)
		if time.Since(began) >= steady {
			pause = firstPause
		}
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, longPause)
	}
}

func (s *Speaker) enabled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config.Enabled()
}

// ceased is after a child that was told to end: peers have forgotten us, so the next one has not restarted. What it
// learned stays until the next one has learned anew; without a next one it goes.
func (s *Speaker) ceased() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarted = false
	if !s.config.Enabled() {
		s.table, s.status = newTable(), bgp.Status{Restarts: s.status.Restarts}
	}
	poke(s.changed)
}

// sweep drops stale routes when their time is over.
func (s *Speaker) sweep(ctx context.Context) {
	for sleep(ctx, time.Second) {
		s.mu.Lock()
		if s.table.expire(time.Now()) {
			poke(s.changed)
		}
		s.mu.Unlock()
	}
}

func (s *Speaker) died(err error) {
	s.opt.Log.Warn("berth-bgp died; what it learned stays for the restart time", "error", err)
	s.mu.Lock()
	s.status.Restarts++
	s.status.LastDeath = err.Error()
	s.mu.Unlock()
	poke(s.changed)
}

// down is the bookkeeping of every child's end: what it learned becomes stale, its sessions idle.
func (s *Speaker) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarted = s.restarted || s.status.Running
	s.status.Running = false
	for i := range s.status.Peers {
		p := &s.status.Peers[i]
		if p.State == bgp.SessionEstablished {
			p.State, p.Since = bgp.SessionIdle, time.Now()
		}
	}
	s.table.strand(time.Now())
	poke(s.changed)
}

// report takes one message of the child's in. An error ends the child.
func (s *Speaker) report(m *channel.ToParent) error {
	if err := channel.CheckReport(m); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case m.Applied != nil:
		s.status.Running, s.status.LastError = true, m.Applied.Error
		if m.Applied.Error != "" {
			s.opt.Log.Warn("berth-bgp could not do all of its configuration", "error", m.Applied.Error)
		}
	case m.Routes != nil:
		s.table.apply(m.Routes)
	case m.Synced != nil:
		s.table.synced(m.Synced.Peers)
	case m.Peers != nil:
		s.status.Peers = known(s.config, m.Peers.Peers)
	default:
		return errors.New("hello twice")
	}
	poke(s.changed)
	return nil
}

// known leaves out peers that were never configured.
func known(c bgp.Config, all []bgp.PeerStatus) (out []bgp.PeerStatus) {
	for _, p := range all {
		if conf, ok := c.Peer(p.Address); ok {
			p.Name, p.ASN = conf.Name, conf.ASN
			out = append(out, p)
		}
	}
	return out
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
