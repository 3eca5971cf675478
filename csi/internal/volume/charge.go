package volume

import (
	"context"
	"slices"
)

// specLocked is what a backend is told of a volume, with what its snapshots and clones may hold.
//
// Where storage is charged to the volume it was written in (Traits.Charged), what a snapshot froze and what a clone
// shares stay charged to the origin when the origin's own copy is overwritten or deleted. So the origin's limit is
// raised by as much, and that much is reserved in the ledger with the snapshot or the clone.
func (m *Manager) specLocked(v Volume) Spec {
	s := v.spec()
	for _, snap := range m.snapshots {
		if slices.Contains(snap.Origins, v.ID) {
			s.Held += snap.Held
		}
	}
	for _, w := range m.volumes {
		if slices.Contains(w.Origins, v.ID) {
			s.Held += w.Inherited
		}
	}
	return s
}

func (m *Manager) spec(v Volume) Spec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.specLocked(v)
}

// charge sets the limits of the volumes that origins names anew, after something that shares with them came or went.
func (m *Manager) charge(ctx context.Context, p *Pool, origins []string) error {
	if !p.Backend.Traits().Charged {
		return nil
	}
	for _, id := range origins {
		m.mu.Lock()
		v, ok := m.volumes[id]
		s := m.specLocked(v)
		m.mu.Unlock()
		if !ok || v.Phase != Ready {
			continue
		}
		if err := p.Backend.Resize(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
