package pod

import (
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBacklog is how many events a slow subscriber may be behind before it is cut off; the kubelet's own queue
// is 1,000 long.
const eventBacklog = 1000

// Event is one change of a container or a pod, in the CRI's terms. For a pod, Container is the pod's id.
type Event struct {
	Type           cri.ContainerEventType
	Pod, Container string
	At             time.Time
}

type bus struct {
	mu    sync.Mutex
	subs  map[chan Event]bool
	ended bool
}

// Subscribe returns a channel of events from now on and a function that ends it. The channel is closed when the
// subscriber fell too far behind, or ended it, or events have ended for all (see [Manager.EndEvents]).
func (m *Manager) Subscribe() (<-chan Event, func()) {
	ch := make(chan Event, eventBacklog)
	m.bus.mu.Lock()
	defer m.bus.mu.Unlock()
	if m.bus.ended {
		close(ch)
		return ch, func() {}
	}
	if m.bus.subs == nil {
		m.bus.subs = map[chan Event]bool{}
	}
	m.bus.subs[ch] = true
	return ch, func() { m.bus.drop(ch) }
}

// EndEvents closes every subscription, now and from now on: a daemon that stops waits for the calls that are being answered,
// and a watch is one that would never be.
func (m *Manager) EndEvents() {
	m.bus.mu.Lock()
	defer m.bus.mu.Unlock()
	m.bus.ended = true
	for ch := range m.bus.subs {
		delete(m.bus.subs, ch)
		close(ch)
	}
}

func (b *bus) drop(ch chan Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs[ch] {
		delete(b.subs, ch)
		close(ch)
	}
}

func (m *Manager) publish(t cri.ContainerEventType, pod, container string) {
	e := Event{Type: t, Pod: pod, Container: container, At: m.cfg.Now()}
	m.bus.mu.Lock()
	defer m.bus.mu.Unlock()
	for ch := range m.bus.subs {
		select {
		case ch <- e:
		default:
			delete(m.bus.subs, ch)
			close(ch)
		}
	}
}
