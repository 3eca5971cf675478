package volume

import (
	"context"
	"errors"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	expandAfterIntent = failpoint.New("csi.expand.after_intent")
	expandAfterResize = failpoint.New("csi.expand.after_resize")
)

// Expand makes a volume at least required bytes large, and says whether the node must grow its file system too. One
// that is large enough stays as it is.
func (m *Manager) Expand(ctx context.Context, id string, required, limit int64) (v Volume, nodeGrows bool, err error) {
	end, err := m.begin(id, "ControllerExpandVolume")
	if err != nil {
		return Volume{}, false, err
	}
	defer end()
	v, p, err := m.volume(id)
	if err != nil {
		return v, false, err
	}
	nodeGrows = p.Backend.Traits().NodeGrows && !v.Block
	if limit > 0 && v.Capacity > limit || limit > 0 && required > limit {
		return v, false, errs.OutOfRange.Errorf("capacity_range: volume %q has %d bytes, %d to %d are asked for; a volume does not shrink", id, v.Capacity, required, limit)
	}
	if required <= v.Capacity {
		return v, nodeGrows, nil
	}
	// 1. Promise the difference, with the intent on the disk.
	old := v
	if v, err = m.promiseMore(ctx, p, v, required); err != nil {
		return old, false, err
	}
	// 2. The storage.
	if err = errors.Join(m.records.Put("volume/"+id, v, true), expandAfterIntent.Hit()); err == nil {
		err = errors.Join(m.resize(context.WithoutCancel(ctx), p, v), expandAfterResize.Hit())
	}
	if err != nil {
		return old, false, errors.Join(err, m.keep(old, true))
	}
	v.Growing = 0
	if err := m.keep(v, true); err != nil {
		return v, false, err
	}
	m.changed(v.Pool)
	return v, nodeGrows, nil
}

func (m *Manager) promiseMore(ctx context.Context, p *Pool, v Volume, required int64) (Volume, error) {
	m.reserving.Lock()
	defer m.reserving.Unlock()
	s, err := m.ask(ctx, p)
	if err != nil {
		return v, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.Backend.Traits().Whole {
		if err := m.reserveLocked(p, s, required-v.Capacity); err != nil {
			return v, err
		}
	}
	v.Growing, v.Capacity = v.Capacity, required
	m.volumes[v.ID] = v
	return v, nil
}
