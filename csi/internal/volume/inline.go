package volume

import (
	"context"
	"errors"

	"github.com/berth-project/berth/proto/errs"
)

// An inline volume is an ordinary one whose name is the id that the kubelet made for it, and whose staging is its own
// target: the kubelet does not call NodeStageVolume for it.

// inlineName keeps the names of inline volumes apart from those of claims.
func inlineName(handle string) string { return "inline/" + handle }

// PublishInline makes a volume in the pool for inline volumes and mounts it at the target.
func (m *Manager) PublishInline(ctx context.Context, c CreateRequest, r PublishRequest) error {
	if c.Block {
		return errs.InvalidArgument.Errorf("volume_capability: an inline volume has a file system")
	}
	p, err := m.inlinePool()
	if err != nil {
		return err
	}
	c.Name, c.Pool = inlineName(c.Name), p.Name
	at, err := m.open(r.Target)
	if err != nil {
		return err
	}
	defer at.close()
	v, err := m.Create(ctx, c)
	if err != nil {
		return err
	}
	if err := at.make(true); err != nil {
		return err
	}
	if r.ReadOnly {
		r.Use.Access = SingleReader
	}
	return m.Stage(ctx, v.ID, r.Target, r.Use)
}

func (m *Manager) inlinePool() (*Pool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pools {
		if p.Inline {
			return m.poolLocked(p.Name)
		}
	}
	return nil, errs.InvalidArgument.Errorf("this node takes no inline volumes: set ephemeral = true in one of its pools, or use a claim")
}

// IsInline says whether a handle of the kubelet's is an inline volume's.
func (m *Manager) IsInline(handle string) bool { return m.Resolve(handle) != handle }

// Resolve is the id of the volume that the kubelet calls handle: for an inline volume, which the kubelet has named
// itself, ours; else the same.
func (m *Manager) Resolve(handle string) string {
	id := newID(volumeKind, inlineName(handle))
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.volumes[id]; ok {
		return id
	}
	return handle
}

// UnpublishInline ends and deletes an inline volume.
func (m *Manager) UnpublishInline(ctx context.Context, handle, target string) error {
	id := newID(volumeKind, inlineName(handle))
	if err := m.Unstage(ctx, id, target); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if err := m.removeEmpty(target); err != nil {
		return err
	}
	return m.Delete(ctx, id)
}

// DefaultPool is the name of the pool of a StorageClass that names none, or "".
func (m *Manager) DefaultPool() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.defaultLocked()
}

func (m *Manager) defaultLocked() string {
	for _, p := range m.pools {
		if p.Default {
			return p.Name
		}
	}
	return ""
}
