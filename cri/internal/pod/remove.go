package pod

import (
	"context"
	"errors"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var failRemoveEmptied = failpoint.New("cri.remove_pod.after_containers")

// Remove stops a pod if need be, removes its containers and then forgets it. It is idempotent; an unknown pod is
// removed.
func (m *Manager) Remove(ctx context.Context, id string) error {
	p, err := m.Pod(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.join(ctx, "removal of pod "+p.ID, stopLimit, func(ctx context.Context) (string, error) {
		return "", m.remove(ctx, p)
	})
	return err
}

func (m *Manager) remove(ctx context.Context, p *Pod) error {
	if err := m.stop(ctx, p); err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	for _, c := range m.ContainersOf(p.ID) {
		if err := m.removeContainer(ctx, c); err != nil {
			return err
		}
	}
	if err := errors.Join(failRemoveEmptied.Hit(), m.forgetPod(p)); err != nil {
		return err
	}
	m.publish(cri.ContainerEventType_CONTAINER_DELETED_EVENT, p.ID, p.ID)
	return nil
}

// forgetPod removes the record, the last thing that is left of a pod.
func (m *Manager) forgetPod(p *Pod) error {
	if err := m.records.Delete(podKind, p.ID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, p.ID)
	return nil
}
