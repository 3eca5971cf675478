// Package ledger keeps the two ways of giving GPUs away apart: what the device plugin gave to containers and what
// DRA claims hold. A GPU that one has is refused to the other, so that both may run on a node without admitting
// more than there is.
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

// gift is a device that the device plugin gave away.
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
	given  map[string]gift     // by UUID
	claims map[string][]string // claim UID -> UUIDs
}

// Open reads the claims in dir. A damaged file is an error: guessing would give a GPU away twice.
func Open(dir string, now func() time.Time) (*Ledger, error) {
	l := &Ledger{file: filepath.Join(dir, "claims.json"), now: now, given: map[string]gift{}, claims: map[string][]string{}}
	b, err := atomicfile.ReadSealed(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ledger: %w: remove the file once no pod on this node uses a claim", err)
	}
	return l, json.Unmarshal(b, &l.claims)
}

// Give notes that the device plugin gives UUIDs away.
func (l *Ledger) Give(uuids []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range uuids {
		if c := l.holder(u); c != "" {
			return errs.FailedPrecondition.Errorf("%s is held by the resource claim %s", u, c)
		}
	}
	for _, u := range uuids {
		l.given[u] = gift{at: l.now()}
	}
	return nil
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
func (l *Ledger) Reconcile(inUse map[string]bool) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for u := range inUse {
		g, ok := l.given[u]
		if !ok {
			g.at, changed = now, true
		}
		g.seen, g.last = true, now
		l.given[u] = g
	}
	for u, g := range l.given {
		if g.seen && now.Sub(g.last) > absent || !g.seen && now.Sub(g.at) > settle {
			delete(l.given, u)
			changed = true
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

// Holder is the claim that has a UUID, or "".
func (l *Ledger) Holder(uuid string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holder(uuid)
}

// holder is Holder for who holds mu.
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
