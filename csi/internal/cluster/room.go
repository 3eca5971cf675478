package cluster

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/proto/errs"
)

// turnedAway is for how long a node does not offer a volume as large as one that it has just turned away, unless room
// comes free: long enough that the scheduler tries another node, short enough to be tried again where there is none.
const turnedAway = 30 * time.Second

// room decides about the claims of a pod together. The scheduler compares each claim of a pod with the node's capacity
// alone (kubernetes#111755), and a claim that is bound here keeps the pod here: so the first of two that fit singly must
// not become a volume when both do not fit.
//
//	claim ─▶ its pod's other claims fit? ─ yes ─▶ all are marked, CreateVolume
//	                  └ no ─▶ RESOURCE_EXHAUSTED for each, less is offered, the scheduler looks again
type room struct {
	mu    sync.Mutex
	marks map[types.UID]mark // of claims that were let in
	away  map[string]away    // of a class
}

// mark is a claim that was let in: bytes are those that the driver's ledger may not have yet.
type mark struct {
	pool  string
	bytes int64
	at    time.Time
}

// away is what was turned away: a pod that wants all bytes, its largest volume large bytes.
type away struct {
	all, large int64
	until      time.Time
}

func newRoom() *room { return &room{marks: map[types.UID]mark{}, away: map[string]away{}} }

// want is a claim of a pod.
type want struct {
	uid               types.UID
	name, class, pool string
	bytes             int64
}

// promised is what claims of a pool were let in for and may not be in the ledger yet, in bytes.
func (r *room) promised(pool string) (sum int64) {
	for _, m := range r.marks {
		if m.pool == pool {
			sum += m.bytes
		}
	}
	return sum
}

// open are those of the claims that were not let in yet.
func (r *room) open(all []want) []want {
	return slices.DeleteFunc(slices.Clone(all), func(w want) bool { _, in := r.marks[w.uid]; return in })
}

// all says whether all claims that were not let in yet fit, of whatever pods they are.
func (r *room) all(claims []want, free int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sum(r.open(claims)) <= free-r.promised(claims[0].pool)
}

// let lets the claims of a pod in, all of them or none; the last is the one that is asked for, and one that was let in
// with an earlier one is in. free is what the pool has to promise, in bytes. Of a single claim the ledger decides.
func (r *room) let(pod []want, free int64, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, in := r.marks[pod[len(pod)-1].uid]; in {
		return nil
	}
	pod = r.open(pod)
	free -= r.promised(pod[0].pool)
	if len(pod) == 1 || sum(pod) <= free {
		for _, w := range pod {
			r.marks[w.uid] = mark{w.pool, w.bytes, now}
		}
		return nil
	}
	a, names := away{all: sum(pod), until: now.Add(turnedAway)}, make([]string, 0, len(pod))
	for _, w := range pod {
		a.large, names = max(a.large, w.bytes), append(names, w.name)
	}
	for _, w := range pod {
		r.away[w.class] = a
	}
	return errs.ResourceExhausted.Errorf("claims %s of one pod want %d bytes together, and %d are free on this node", strings.Join(names, ", "), a.all, max(free, 0))
}

// done ends what a claim was let in for: made, its bytes are in the ledger; the mark stays until the claim is surely
// seen as bound.
func (r *room) done(uid types.UID, made bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.marks[uid]; ok && made {
		m.bytes = 0
		r.marks[uid] = m
	} else {
		delete(r.marks, uid)
	}
	const long = 10 * time.Minute
	maps.DeleteFunc(r.marks, func(_ types.UID, m mark) bool { return now.Sub(m.at) > long })
}

// offer is the largest volume that a class offers, in bytes, where available are free and most could be one volume.
func (r *room) offer(class string, available, most int64, now time.Time) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.away[class]
	if !ok {
		return most
	}
	if now.After(a.until) || available >= a.all {
		delete(r.away, class)
		return most
	}
	return min(most, a.large-1)
}

// again ends when something that was turned away may be offered again; nil, which never does, if there is nothing.
func (r *room) again(now time.Time) <-chan time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first time.Time
	for _, a := range r.away {
		if first.IsZero() || a.until.Before(first) {
			first = a.until
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(first.Sub(now) + time.Millisecond)
}

func sum(all []want) (n int64) {
	for _, w := range all {
		n += w.bytes
	}
	return n
}
