package volume

import (
	"context"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// lookForPools is how often a pool that was not there at the start is looked for.
const lookForPools = 3 * time.Second

// health says what is wrong with a pool, also with one that is not there.
func (p *Pool) health(ctx context.Context) []Condition {
	if p.Backend == nil {
		return []Condition{{Reason: "PoolUnreachable", Message: p.Missing.Error(), Fatal: true}}
	}
	return p.Backend.Health(ctx)
}

// reopen looks for the pools that are not there. What was interrupted in one that comes back is gone on with before
// anything waits for the next minute.
func (m *Manager) reopen(ctx context.Context) {
	for _, p := range m.Pools() {
		if p.Backend != nil || p.Open == nil {
			continue
		}
		b, err := p.Open()
		m.mu.Lock()
		own := m.pools[p.Name]
		if err != nil {
			own.Missing = err
		} else {
			own.Backend, own.Missing = b, nil
		}
		m.mu.Unlock()
		if err != nil {
			m.log.Debug("pool is not there", "pool", p.Name, "error", err)
			continue
		}
		m.log.Info("pool is back", "pool", p.Name)
		for _, v := range m.all() {
			if v.Pool != p.Name {
				continue
			}
			if err := m.reconcileVolume(ctx, v, false); err != nil && errs.Of(err) != errs.Aborted {
				m.log.Warn("volume left as it is for now", "volume", v.ID, "phase", string(v.Phase), "error", err)
			}
		}
		if err := m.relimit(ctx, &Pool{Name: p.Name, Backend: b}); err != nil {
			m.log.Error("limits of volumes not set anew", "pool", p.Name, "error", err)
		}
		m.wake(m.unsettled)
		m.changed(p.Name)
	}
}
