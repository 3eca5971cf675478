package pod

import (
	"context"
	"errors"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// stopLimit bounds the stopping of a pod after its caller has gone.
const stopLimit = 2 * time.Minute

var (
	failStopKilled   = failpoint.New("cri.stop_pod.after_kill")
	failStopDetached = failpoint.New("cri.stop_pod.after_detach")
	failStopReleased = failpoint.New("cri.stop_pod.after_release")
)

// Stop ends a pod's containers at once, detaches its network and gives up its namespaces. It is idempotent; an
// unknown pod is stopped. The work goes on if the caller leaves.
func (m *Manager) Stop(ctx context.Context, id string) error {
	p, err := m.Pod(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.join(ctx, "stop of pod "+p.ID, stopLimit, func(ctx context.Context) (string, error) {
		return "", m.stop(ctx, p)
	})
	return err
}

func (m *Manager) stop(ctx context.Context, p *Pod) error {
	p.op.Lock()
	defer p.op.Unlock()
	if err := m.stopAll(ctx, p); err != nil {
		return err
	}
	if err := m.teardown(ctx, p); err != nil {
		return err
	}
	was := p.State().Ready
	p.set(func(s *PodState) { s.Ready, s.Network, s.Result, s.Undone = false, "", nil, false })
	if err := m.savePod(p); err != nil {
		return err
	}
	if was {
		m.publish(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, p.ID, p.ID)
		m.cfg.Log.Info("pod stopped", "pod", p.ID)
	}
	return nil
}

// stopAll kills every container of a pod, all at once.
func (m *Manager) stopAll(ctx context.Context, p *Pod) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []error
	for _, c := range m.ContainersOf(p.ID) {
		wg.Go(func() {
			err := errors.Join(m.stopContainer(ctx, c, 0), m.bar(c))
			if err == nil {
				err = m.stopContainer(ctx, c, 0) // a start that was under way
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, err)
				return
			}
			m.settled(ctx, c)
		})
	}
	wg.Wait()
	return errors.Join(append(all, failStopKilled.Hit())...)
}

// teardown takes back what makes a pod run: the network attachment, the pin, the namespaces, the files. Each step
// finds its object by the pod's id and is happy when there is none, so the same function serves stop, a failed
// start and recovery.
func (m *Manager) teardown(ctx context.Context, p *Pod) error {
	if !p.hostNetwork() {
		netns := ""
		if ns, err := m.shims.Namespace(p.ID, "net"); err == nil {
			netns, err = m.network.Pin(p.ID, ns)
			_ = ns.Close() // pinned, or not
			if err != nil {
				return err
			}
		}
		if st := p.State(); st.Network != "" || st.Creating || st.Undone {
			if err := m.network.Detach(ctx, m.attachment(p, netns)); err != nil {
				return err
			}
		}
		if err := errors.Join(failStopDetached.Hit(), m.network.Unpin(p.ID)); err != nil {
			return err
		}
	}
	if err := errors.Join(m.shims.RemovePod(ctx, p.ID), failStopReleased.Hit()); err != nil {
		return err
	}
	if err := m.removeGroups(ctx, p); err != nil {
		return err
	}
	return m.removeFiles(p.ID)
}
