package volume

import (
	"context"
	"errors"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	deleteBeforeIntent = failpoint.New("csi.delete.before_intent")
	deleteAfterIntent  = failpoint.New("csi.delete.after_intent")
	deleteAfterRemove  = failpoint.New("csi.delete.after_remove")
	deleteAfterForget  = failpoint.New("csi.delete.after_forget")
)

// Delete removes a volume; one that does not exist is fine. A volume that is staged, mounted or attached anywhere on
// this node is FailedPrecondition and stays whole. Its bytes are erased in the background.
func (m *Manager) Delete(ctx context.Context, id string) error {
	end, err := m.begin(id, "DeleteVolume")
	if err != nil {
		return err
	}
	defer end()
	m.mu.Lock()
	v, ok := m.volumes[id]
	m.mu.Unlock()
	if !ok {
		return nil
	}
	p, err := m.pool(v.Pool)
	if err != nil {
		return err
	}
	if v.Staged() {
		return errs.FailedPrecondition.Errorf("volume %q is staged at %s: NodeUnpublishVolume and NodeUnstageVolume must come first", id, v.Node.Staging)
	}
	// 1. Nobody may use it, whatever our records say: a mount in any namespace, a device.
	if err := p.Backend.Release(ctx, m.spec(v)); err != nil {
		return err
	}
	// 2. The intent, on the disk; then the storage, then the record.
	v.Phase = Deleting
	if err := errors.Join(deleteBeforeIntent.Hit(), m.keep(v, true), deleteAfterIntent.Hit()); err != nil {
		return err
	}
	return m.finishDelete(ctx, p, v)
}

// finishDelete removes the storage and then the record of a volume whose deletion is recorded.
func (m *Manager) finishDelete(ctx context.Context, p *Pool, v Volume) error {
	if err := errors.Join(p.Backend.Remove(ctx, m.spec(v)), deleteAfterRemove.Hit()); err != nil {
		return err
	}
	if v.Source.Volume != "" {
		if err := p.Backend.RemoveSnapshot(ctx, v.bridge()); err != nil {
			return err
		}
	}
	if err := errors.Join(m.forget(v), deleteAfterForget.Hit()); err != nil {
		return err
	}
	m.Purge()
	return m.charge(ctx, p, v.Origins)
}

// Purge wakes the background erasing of what was removed.
func (m *Manager) Purge() { m.wake(m.trash) }

func (m *Manager) wake(work chan<- struct{}) {
	select {
	case work <- struct{}{}:
	default: // it is awake
	}
}
