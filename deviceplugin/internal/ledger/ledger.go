// Package ledger keeps the two ways of giving GPUs away apart: what the device plugin gave to containers and what
// DRA claims hold. A GPU that one has is refused to the other, so that both may run on a node without admitting
// more than there is. Nor is a device given under one offer while a container has it under another: the kubelet
// counts ids of a resource, and an offer that changed brings ids that it has never given.
//
// The kubelet tells a device plugin what it takes and never what it gives back. What is in use is therefore
// reconciled with the PodResources API. Claims are kept on disk, because the kubelet does not prepare them again
// after our restart.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
)

// How long a device counts as given although PodResources does not show it: settle for one that it has not shown
// yet, because the kubelet calls Allocate before it writes the pod down; absent for one that it showed, because a
// kubelet that has just started has not heard of all its pods.
const (
	settle = 15 * time.Second
	absent = 5 * time.Second
)

// Use is a device as the kubelet counts it: an id of a resource, the device's UUID with "::<n>" for a share.
type Use struct{ Resource, ID string }

// UUID is the device's, whatever share of it.
func (u Use) UUID() string {
	uuid, _, _ := strings.Cut(u.ID, "::")
	return uuid
}

// Offer is how a device is offered: under a resource's name, whole (Shares 1) or in shares that count from 0.
type Offer struct {
	Resource string
	Shares   int
}

// counts says whether the kubelet counts a use against this offer: then it gives that id to nobody else.
func (o Offer) counts(u Use) bool {
	_, share, shared := strings.Cut(u.ID, "::")
	if u.Resource != o.Resource || !shared {
		return u.Resource == o.Resource && o.Shares == 1
	}
	n, err := strconv.Atoi(share)
	return err == nil && o.Shares > 1 && 0 <= n && n < o.Shares
}

// gift is a use that the device plugin gave away.
type gift struct {
	at   time.Time // when, the last time
	seen bool      // in PodResources, since then
	last time.Time // when it was there last
}

// Ledger is one node's.
type Ledger struct {
	file string
	now  func() time.Time

	mu     sync.Mutex
	given  map[string]map[Use]gift // by UUID
	claims map[string][]string     // claim UID -> UUIDs
}

// Open reads the claims in dir. A damaged file is an error: guessing would give a GPU away twice.
func Open(dir string, now func() time.Time) (*Ledger, error) {
	l := &Ledger{file: filepath.Join(dir, "claims.json"), now: now, given: map[string]map[Use]gift{}, claims: map[string][]string{}}
	b, err := atomicfile.ReadSealed(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ledger: %w: remove the file once no pod on this node uses a claim", err)
	}
	return l, json.Unmarshal(b, &l.claims)
}

// Give notes that the device plugin gives ids of an offer away. A device that a claim holds, or that a container has
// under another offer, is FailedPrecondition, and nothing is noted.
func (l *Ledger) Give(o Offer, ids []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if why := l.held(o, Use{o.Resource, id}); why != "" {
			return errs.FailedPrecondition.Errorf("%s is %s", id, why)
		}
	}
	for _, id := range ids {
		l.note(Use{o.Resource, id}, gift{at: l.now()})
	}
	return nil
}

// note keeps a gift. The caller holds mu.
func (l *Ledger) note(u Use, g gift) {
	if l.given[u.UUID()] == nil {
		l.given[u.UUID()] = map[Use]gift{}
	}
	l.given[u.UUID()][u] = g
}

// Held says who keeps an id of an offer from being given, "" if nobody does: a claim that has its device, or a
// container that has it under an offer that holds no more. An id that is given itself is kept by nobody: its
// container goes on, and the kubelet gives it to no other.
func (l *Ledger) Held(o Offer, id string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held(o, Use{o.Resource, id})
}

// held is Held for who holds mu.
func (l *Ledger) held(o Offer, u Use) string {
	if c := l.holder(u.UUID()); c != "" {
		return "held by the resource claim " + c
	}
	given := l.given[u.UUID()]
	if _, own := given[u]; own {
		return ""
	}
	var earlier []string
	for g := range given {
		if !o.counts(g) {
			earlier = append(earlier, fmt.Sprintf("held under its earlier offer, as %s of %s", g.ID, g.Resource))
		}
	}
	if len(earlier) == 0 {
		return ""
	}
	return slices.Min(earlier) // the same one each time: a reason that changes is news
}

// Claim gives UUIDs to a claim. A claim that has them already is no error: the kubelet asks again.
func (l *Ledger) Claim(claim string, uuids []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Equal(l.claims[claim], uuids) && len(uuids) > 0 {
		return nil
	}
	for _, u := range uuids {
		if c := l.holder(u); c != "" && c != claim {
			return errs.FailedPrecondition.Errorf("%s is held by the resource claim %s", u, c)
		}
		if _, out := l.given[u]; out {
			return errs.FailedPrecondition.Errorf("%s was given to a container by the device plugin", u)
		}
	}
	next := maps.Clone(l.claims)
	next[claim] = slices.Clone(uuids)
	return l.replace(next)
}

// Release ends a claim; one that is not there is no error.
func (l *Ledger) Release(claim string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.claims[claim]; !ok {
		return nil
	}
	next := maps.Clone(l.claims)
	delete(next, claim)
	return l.replace(next)
}

// Claims lists what claims hold, by claim.
func (l *Ledger) Claims() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.claims)
}

// Reconcile takes over what containers really have, as PodResources shows it, and says whether a device came back
// or was found given.
func (l *Ledger) Reconcile(inUse []Use) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, u := range inUse {
		g, ok := l.given[u.UUID()][u]
		if !ok {
			g.at, changed = now, true
		}
		g.seen, g.last = true, now
		l.note(u, g)
	}
	for uuid, all := range l.given {
		for u, g := range all {
			if g.seen && now.Sub(g.last) > absent || !g.seen && now.Sub(g.at) > settle {
				delete(all, u)
				changed = true
			}
		}
		if len(all) == 0 {
			delete(l.given, uuid)
		}
	}
	return changed
}

// Given lists what containers have through the device plugin.
func (l *Ledger) Given() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.given))
}

// holder is the claim that has a UUID, or "". The caller holds mu.
func (l *Ledger) holder(uuid string) string {
	for c, all := range l.claims {
		if slices.Contains(all, uuid) {
			return c
		}
	}
	return ""
}

// replace writes first and believes after. The caller holds mu.
func (l *Ledger) replace(next map[string][]string) error {
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.file), 0o700); err != nil {
		return err
	}
	if err := atomicfile.WriteSealed(l.file, b, 0o600); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	l.claims = next
	return nil
}
