package pod

import (
	"context"
	"errors"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var failRemoveKilled = failpoint.New("cri.remove.after_kill")

// RemoveContainer kills a container if it runs and removes all of it but its log, which is the kubelet's. It is
// idempotent; an unknown container is removed.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.Container(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.join(ctx, "removal of container "+c.ID, stopLimit, func(ctx context.Context) (string, error) {
		return "", m.removeContainer(ctx, c)
	})
	return err
}

func (m *Manager) removeContainer(ctx context.Context, c *Container) error {
	if err := errors.Join(m.stopContainer(ctx, c, 0), m.bar(c)); err != nil {
		return err
	}
	if err := m.stopContainer(ctx, c, 0); err != nil { // a start that was under way
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	m.mu.RLock()
	known := m.containers[c.ID] == c
	m.mu.RUnlock()
	if !known {
		return nil
	}
	if c.State().CRI() == cri.ContainerState_CONTAINER_EXITED {
		if err := m.release(c); err != nil {
			return err
		}
	}
	if err := errors.Join(failRemoveKilled.Hit(), m.discardContainer(c)); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.containers, c.ID)
	m.mu.Unlock()
	m.publish(cri.ContainerEventType_CONTAINER_DELETED_EVENT, c.PodID, c.ID)
	return nil
}
