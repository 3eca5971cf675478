// Package offload finds out whether checksums survive the way to other nodes when the device is left to compute them.
// Some network cards, and some hypervisors under them, spoil the checksum of a packet that is wrapped in VXLAN, and TCP
// between pods then stands still for a minute at a time (flannel#1279, kubernetes#88986), while ping works. Nobody but
// the receiver sees it, so two agents ask each other: a question with and one without a checksum, by UDP through the
// tunnel. Where the ones without are answered and the others are not, the device is to compute checksums in software.
//
//	questions ──▶ peer's agent       summed and plain answered: sound
//	          ◀── answers            plain alone, in each of three rounds: spoilt
//	                                 none: says nothing (no agent of ours, or not there); asked again later
package offload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Times and numbers of the test. A peer that is sound costs four packets in ten minutes.
const (
	rounds  = 3
	wait    = 300 * time.Millisecond
	abreast = 32
	again   = 10 * time.Minute
	// A peer that says nothing is asked again after the first of these, then after twice that, up to the last.
	soon, late = time.Second, 5 * time.Minute
	pace       = 100 * time.Millisecond
)

// Target is another node's end of a tunnel.
type Target struct {
	// Dev is this node's device, Index its index: one that was made anew needs other sockets.
	Dev   string
	Index int32
	// Peer is the first address of the other node's block.
	Peer netip.Addr
	// Port is the UDP port at which agents hear each other.
	Port uint16
}

// Verdict says that a device's checksums are spoilt.
type Verdict struct {
	Dev  string    `json:"dev"`
	Why  string    `json:"why"`
	Time time.Time `json:"time"`
}

// Test asks the peers. Use [New]; [Test.Run] and [Test.Set] go on beside each other.
type Test struct {
	log     *slog.Logger
	kept    string
	changed chan struct{}
	wake    chan struct{}

	mu       sync.Mutex
	targets  map[Target]asking
	peers    map[link]map[netip.Addr]bool
	sockets  map[link]*socket
	waiting  map[uint64]chan<- kind
	verdicts map[string]Verdict
	closed   bool
}

// asking is when a target is due, and what it said so far.
type asking struct {
	due    time.Time
	sound  bool
	silent int // times in a row
}

// link is a device, a family and a UDP port.
type link struct {
	dev   string
	index int32
	v6    bool
	port  uint16
}

func (x Target) link() link { return link{x.Dev, x.Index, x.Peer.Is6(), x.Port} }

// New makes a test that asks nobody yet. Verdicts are kept in a file, which is to last as long as
// the machine runs: a device that was found out stays so, and is not tried on its pods again at each start.
func New(kept string, log *slog.Logger) (*Test, error) {
	t := &Test{
		kept: kept, log: log, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		targets: map[Target]asking{}, peers: map[link]map[netip.Addr]bool{}, sockets: map[link]*socket{}, waiting: map[uint64]chan<- kind{},
	}
	var err error
	t.verdicts, err = load(kept)
	return t, err
}

// Changed has a value when there is another verdict.
func (t *Test) Changed() <-chan struct{} { return t.changed }

// Verdicts are sorted by device.
func (t *Test) Verdicts() []Verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.verdicts), func(a, b Verdict) int { return strings.Compare(a.Dev, b.Dev) })
}

// Set says who is to be asked. The same again changes nothing; what cannot be opened is an error, and the rest is asked.
func (t *Test) Set(ctx context.Context, targets []Target) error {
	old, err := t.set(ctx, targets)
	for _, s := range old { // not with the lock held: who hears may wait for it
		err = errors.Join(err, s.close())
	}
	return err
}

func (t *Test) set(ctx context.Context, targets []Target) (old []*socket, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil
	}
	peers, news := map[link]map[netip.Addr]bool{}, false
	all := make(map[Target]asking, len(targets))
	for _, x := range targets {
		l := x.link()
		if peers[l] == nil {
			peers[l] = map[netip.Addr]bool{}
		}
		peers[l][x.Peer] = true
		state, known := t.targets[x]
		all[x], news = state, news || !known
	}
	t.targets, t.peers = all, peers
	if news {
		t.poke()
	}
	return t.reopen(ctx)
}

// reopen makes the sockets be those of the links that have peers, and returns those to be closed. It is with the lock held.
func (t *Test) reopen(ctx context.Context) (old []*socket, err error) {
	var errs []error
	for l, s := range t.sockets {
		if t.peers[l] == nil {
			old = append(old, s)
			delete(t.sockets, l)
		}
	}
	for l := range t.peers {
		if t.sockets[l] != nil {
			continue
		}
		s, err := open(ctx, l)
		if err != nil {
			errs = append(errs, fmt.Errorf("self-test on %s: %w", l.dev, err))
			continue
		}
		t.sockets[l] = s
		go s.hear(func(m message, from netip.Addr) { t.heard(l, s, m, from) }) // ends with the socket
	}
	return old, errors.Join(errs...)
}

func (t *Test) poke() {
	select {
	case t.wake <- struct{}{}:
	default: // one is waiting
	}
}

// heard is a message from a peer; nobody else is answered.
func (t *Test) heard(l link, s *socket, m message, from netip.Addr) {
	t.mu.Lock()
	known, asked := t.peers[l][from], t.waiting[m.nonce]
	t.mu.Unlock()
	if !known {
		return
	}
	if reply, ok := m.answer(); ok {
		s.send(reply, from)
		return
	}
	if asked != nil {
		select {
		case asked <- m.kind:
		default: // answered twice
		}
	}
}

// Run asks until ctx ends, and closes the sockets.
func (t *Test) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-t.wake:
		case <-timer.C:
		}
		batch, next := t.due(time.Now())
		var wg sync.WaitGroup
		for _, x := range batch {
			wg.Go(func() { t.ask(ctx, x) })
		}
		wg.Wait()
		timer.Reset(next)
	}
	err := t.Set(context.WithoutCancel(ctx), nil)
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	return err
}

// due is whom to ask now, some at a time, and when to look again.
func (t *Test) due(now time.Time) (batch []Target, next time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next = again
	for x, state := range t.targets {
		_, settled := t.verdicts[x.Dev]
		switch {
		case settled || t.sockets[x.link()] == nil:
		case state.due.After(now):
			next = min(next, state.due.Sub(now))
		case len(batch) == abreast:
			next = pace
		default:
			batch = append(batch, x)
		}
	}
	if len(batch) > 0 {
		next = pace
	}
	return batch, next
}

// ask puts the question to one peer, and judges.
func (t *Test) ask(ctx context.Context, x Target) {
	var plains int
	for range rounds {
		gotPlain, gotSummed := t.round(ctx, x)
		if gotSummed {
			t.settle(x, true)
			return
		}
		if gotPlain {
			plains++
		}
		if ctx.Err() != nil {
			return
		}
	}
	if plains < rounds {
		t.settle(x, false)
		return
	}
	t.judge(x)
}

// settle says when the target is asked again: about then, so that a thousand nodes do not ask at once.
func (t *Test) settle(x Target, sound bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	state, still := t.targets[x]
	if !still {
		return
	}
	in := again
	if sound {
		state.silent = 0
	} else {
		in = min(soon<<min(state.silent, 16), late)
		state.silent++
	}
	state.sound, state.due = sound, time.Now().Add(in/2+rand.N(in)) //nolint:gosec // spread, no secret
	t.targets[x] = state
}

// Asked is how many peers there are to ask, and how many of them said last that checksums arrive.
func (t *Test) Asked() (all, sound int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, state := range t.targets {
		if state.sound {
			sound++
		}
	}
	return len(t.targets), sound
}

// round asks both ways once.
func (t *Test) round(ctx context.Context, x Target) (gotPlain, gotSummed bool) {
	answers, nonce := make(chan kind, 4), rand.Uint64() //nolint:gosec // peers alone are heard
	t.mu.Lock()
	s := t.sockets[x.link()]
	t.waiting[nonce] = answers
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.waiting, nonce)
		t.mu.Unlock()
	}()
	if s == nil {
		return false, false
	}
	s.send(message{summed, nonce}, x.Peer)
	s.send(message{plain, nonce}, x.Peer)
	over := time.NewTimer(wait)
	defer over.Stop()
	for !gotPlain || !gotSummed {
		select {
		case k := <-answers:
			gotPlain, gotSummed = gotPlain || k == heardPlain, gotSummed || k == heardSummed
		case <-over.C:
			return gotPlain, gotSummed
		case <-ctx.Done():
			return false, false
		}
	}
	return true, true
}

// judge settles a device.
func (t *Test) judge(x Target) {
	v := Verdict{Dev: x.Dev, Time: time.Now(), Why: fmt.Sprintf(
		"%s answered %d of %d questions without a checksum and none with one that the device filled in", x.Peer, rounds, rounds)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.targets[x]; !there {
		return
	}
	t.verdicts[x.Dev] = v
	if err := save(t.kept, t.verdicts); err != nil {
		t.log.Warn("the self-test's verdict is not written: it is found again after a restart", "error", err)
	}
	t.log.Warn("checksums are computed in software from now on", "device", v.Dev, "why", v.Why)
	select {
	case t.changed <- struct{}{}:
	default:
	}
}
