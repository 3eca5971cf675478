package pod

import (
	"context"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/proto/errs"
)

// limbo are the pods and containers that only a supervisor which has not answered since the daemon's start can know.
// They are listed as their records say, and go on; stopping and removing work by the cgroup; an exec is refused.
type limbo struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (l *limbo) put(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[string]bool{}
	}
	l.ids[id] = true
}

// take says whether id was there; it is not any more.
func (l *limbo) take(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.ids[id]
	delete(l.ids, id)
	return was
}

// lives says whether a container has a process.
func (m *Manager) lives(c *Container) bool {
	group, err := m.Group(c)
	return err == nil && len(m.cfg.Cgroups.Pids(group)) > 0
}

// regained takes back what a supervisor held that has answered at last, or has gone. After the last one, nobody holds
// what is left in limbo.
func (m *Manager) regained(found shims.Found) {
	ctx, done := m.detach(context.Background(), time.Minute)
	defer done()
	for _, c := range m.Containers() {
		st, known := found.Containers[c.ID]
		switch {
		case known && c.State().CRI() == cri.ContainerState_CONTAINER_EXITED: // it was stopped without its supervisor
			if err := m.release(c); err != nil {
				m.cfg.Log.Warn("ended container not fully cleaned", "container", c.ID, "error", err)
			}
		case known && st.Exit == nil && m.limbo.take(c.ID):
			m.resume(c)
		case (known || found.Silent == 0) && m.limbo.take(c.ID):
			m.finish(c.ID, m.lastWord(c, st, known))
		}
	}
	for _, p := range m.Pods() {
		_, held := found.Pods[p.ID]
		if (held || found.Silent == 0) && m.limbo.take(p.ID) && !held && p.State().Ready {
			m.lose(ctx, p, false)
			if err := m.savePod(p); err != nil {
				m.cfg.Log.Error("pod not recorded", "pod", p.ID, "error", err)
			}
		}
	}
	m.endStrangers(ctx, found)
}

// silent is the error of an operation that needs the supervisor of a container in limbo.
func (m *Manager) silent(c *Container) error {
	m.limbo.mu.Lock()
	defer m.limbo.mu.Unlock()
	if m.limbo.ids[c.ID] {
		return errs.Unavailable.Errorf("container %s: its supervisor lives but does not answer (stopped or starved?); it is asked again and again", c.ID)
	}
	return nil
}
