package volume

import (
	"context"
	"errors"
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
		m.mu.Unlock()
		if !ok || v.Phase != Ready {
			continue
		}
		if err := m.resize(ctx, p, v); err != nil {
			return err
		}
	}
	return nil
}

// resize makes a volume's storage and its limit what they are to be now. Where the limit is set apart from the storage, what it
// is to be changes with every snapshot and clone: then whoever decides it sets it before the next one decides.
func (m *Manager) resize(ctx context.Context, p *Pool, v Volume) error {
	if p.Backend.Traits().Limited {
		m.limiting.Lock()
		defer m.limiting.Unlock()
	}
	return p.Backend.Resize(ctx, m.spec(v))
}

// relimit sets the limits of a pool's volumes anew: a kill or a power cut between a record and a limit leaves the old one.
func (m *Manager) relimit(ctx context.Context, p *Pool) error {
	if !p.Backend.Traits().Limited {
		return nil
	}
	var failed error
	for _, v := range m.all() {
		if v.Pool == p.Name && v.Phase == Ready && v.Growing == 0 {
			failed = errors.Join(failed, m.resize(ctx, p, v))
		}
	}
	return failed
}
