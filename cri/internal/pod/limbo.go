package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
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

func (l *limbo) has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[id]
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

// wasStarted says that a process ran in a container's group.
func (m *Manager) wasStarted(c *Container) bool {
	group, err := m.Group(c)
	return err == nil && m.cfg.Cgroups.Used(group)
}

// dead says whether a container's init process has ended, by the pool's pidfd, or in limbo by the cgroup.
func (m *Manager) dead(c *Container) bool {
	if m.limbo.has(c.ID) {
		return !m.lives(c)
	}
	return m.shims.Dead(c.ID)
}

func (m *Manager) exitRecorded(c *Container) bool {
	_, err := os.Stat(m.exitFile(c.ID))
	return err == nil
}

// signal sends a container's process a signal; one in limbo by its recorded pid, if that is a process of its cgroup.
func (m *Manager) signal(c *Container, sig unix.Signal) error {
	err := m.shims.Signal(c.ID, sig)
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	pid := c.State().Pid
	group, gerr := m.Group(c)
	if gerr != nil || pid <= 0 || !m.limbo.has(c.ID) {
		return nil // ended
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil //nolint:nilerr // ended
	}
	defer unix.Close(fd)                                  //nolint:errcheck // a pidfd
	if !slices.Contains(m.cfg.Cgroups.Pids(group), pid) { // asked after the pidfd is open: the pid cannot change hands
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal container %s: %w", c.ID, err)
	}
	return nil
}

// regained takes back what a supervisor held that has answered at last, or has gone. After the last one, nobody holds
// what is left in limbo.
func (m *Manager) regained(found shims.Found) {
	select {
	case <-m.whole:
	case <-m.life.Done():
		return
	}
	ctx, done := m.detach(context.Background(), time.Minute)
	defer done()
	if found.Silent == 0 {
		m.rescue(ctx, found, m.limbo.has)
	}
	for _, c := range m.Containers() {
		st, known := found.Containers[c.ID]
		switch {
		case known && c.State().CRI() == cri.ContainerState_CONTAINER_EXITED: // it was stopped without its supervisor
			if err := m.release(c); err != nil {
				m.cfg.Log.Warn("ended container not fully cleaned", "container", c.ID, "error", err)
			}
		case known && st.Exit == nil && m.limbo.take(c.ID):
			m.started(c, st)
			m.resume(c)
		case (known || found.Silent == 0) && m.limbo.take(c.ID):
			m.started(c, st)
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
	if m.limbo.has(c.ID) {
		return errs.Unavailable.Errorf("container %s: its supervisor lives but does not answer (stopped or starved?); it is asked again and again", c.ID)
	}
	return nil
}

// started makes a container RUNNING whose start was not recorded before the daemon died.
func (m *Manager) started(c *Container, st v1.ContainerState) {
	c.set(func(s *ContainerState) {
		switch {
		case st.Pid != 0:
			s.StartedAt, s.Pid = st.StartedAt, st.Pid
		case s.StartedAt.IsZero(): // nobody knows when
			s.StartedAt = c.CreatedAt
		}
	})
}
