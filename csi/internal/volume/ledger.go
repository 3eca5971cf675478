package volume

import (
	"context"
	"math"

	"github.com/berth-project/berth/proto/errs"
)

// ledger is what a pool may promise and has promised, in bytes.
type ledger struct {
	limit    int64 // size times overcommit
	promised int64
	physical int64 // what the file system can still give beyond what is promised; MaxInt64: not limited by it
}

// free is what one more volume may get.
func (l ledger) free() int64 {
	return max(0, min(l.limit-l.promised, l.physical))
}

// poolState asks the pool's file system; the answers go into ledgerLocked.
type poolState struct {
	space    Space
	unbacked int64 // of all pools on the same device
}

func (m *Manager) ask(ctx context.Context, p *Pool) (poolState, error) {
	others := m.askOthers(ctx, p)
	space, err := p.Backend.Space(ctx, m.specs(p.Name))
	if err != nil {
		return poolState{}, err
	}
	if space.ReadOnly {
		return poolState{}, errs.Unavailable.Errorf("pool %s is read-only: see the kernel's log for why", p.Name)
	}
	return poolState{space: space, unbacked: space.Unbacked + others}, nil
}

// askOthers is what other pools on a pool's medium have promised and not allocated. One that overcommits backs nothing; one
// that gives no answer says so in its own health, and does not keep this one from answering.
func (m *Manager) askOthers(ctx context.Context, p *Pool) (unbacked int64) {
	medium := p.Backend.Medium()
	for _, q := range m.Pools() {
		if q.Name == p.Name || q.Backend == nil || q.Overcommit > 1 || medium == "" || q.Backend.Medium() != medium {
			continue
		}
		s, err := q.Backend.Space(ctx, m.specs(q.Name))
		if err != nil {
			m.log.Debug("a pool of the same medium does not answer", "pool", q.Name, "error", err)
			continue
		}
		unbacked += s.Unbacked
	}
	return unbacked
}

// specs are those of a pool's volumes.
func (m *Manager) specs(pool string) (all []Spec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.volumes {
		if v.Pool == pool {
			all = append(all, m.specLocked(v))
		}
	}
	return all
}

// ledgerLocked is computed from the records each time: there is no second account that could differ.
func (m *Manager) ledgerLocked(p *Pool, s poolState) ledger {
	size := p.Size
	if size == 0 {
		size = s.space.Total - p.KeepFree
	}
	l := ledger{limit: int64(float64(size) * p.Overcommit), physical: s.space.Free - p.KeepFree - s.unbacked}
	if p.Overcommit > 1 { // promises are not backed, that is the point; but a full pool takes no more
		l.physical = math.MaxInt64
		if s.space.Free <= p.KeepFree {
			l.physical = 0
		}
	}
	for _, v := range m.volumes {
		if v.Pool == p.Name {
			l.promised += v.reserved()
		}
	}
	for _, s := range m.snapshots {
		if s.Pool == p.Name {
			l.promised += s.Held
		}
	}
	return l
}

// reserveLocked says ResourceExhausted if a pool cannot promise n bytes more. The caller records the promise before
// it lets go of mu.
func (m *Manager) reserveLocked(p *Pool, s poolState, n int64) error {
	l := m.ledgerLocked(p, s)
	if n > l.free() {
		return errs.ResourceExhausted.Errorf("pool %s has %d bytes left to promise, %d are needed (it promised %d of %d; %d free in its file system)",
			p.Name, l.free(), n, l.promised, l.limit, s.space.Free)
	}
	if s.space.InodesFree == 0 {
		return errs.ResourceExhausted.Errorf("pool %s is out of inodes", p.Name)
	}
	return nil
}

// Capacity is what a pool can still promise in all, which one volume may have, and the size of the smallest volume.
func (m *Manager) Capacity(ctx context.Context, pool string) (free, smallest int64, err error) {
	p, err := m.pool(pool)
	if err != nil {
		return 0, 0, err
	}
	s, err := m.ask(ctx, p)
	if err != nil {
		return 0, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	granularity := max(1, p.Backend.Traits().Granularity)
	return m.ledgerLocked(p, s).free() / granularity * granularity, p.Backend.Traits().MinSize, nil
}

// State is a pool as the operator's table and the metrics show it.
type State struct {
	Name, Kind, Path                string
	Limit, Promised, Free, Physical int64
	Volumes, Snapshots              int
	Problems                        []Condition
}

// States of all pools, by name. A pool that is not there has only its problems.
func (m *Manager) States(ctx context.Context) []State {
	var all []State
	for _, p := range m.Pools() {
		st := State{Name: p.Name, Kind: p.Kind, Path: p.Path, Problems: p.health(ctx)}
		var s poolState
		err := p.Missing
		if p.Backend != nil {
			s, err = m.ask(ctx, &p)
		}
		m.mu.Lock()
		if err == nil {
			l := m.ledgerLocked(&p, s)
			st.Limit, st.Promised, st.Free, st.Physical = l.limit, l.promised, l.free(), s.space.Free
			if s.space.Free-p.KeepFree < s.space.Total/10 && p.Overcommit > 1 {
				st.Problems = append(st.Problems, Condition{Reason: "PoolNearlyFull", Message: "pool " + p.Name + " overcommits and has less than a tenth of its file system free"})
			}
		}
		for _, v := range m.volumes {
			if v.Pool == p.Name {
				st.Volumes++
			}
		}
		for _, s := range m.snapshots {
			if s.Pool == p.Name {
				st.Snapshots++
			}
		}
		m.mu.Unlock()
		all = append(all, st)
	}
	return all
}
