package pod

import (
	"context"
	"errors"
	"os"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/internal/atomicfile"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// finish records how a container ended, once, and cleans up after it. It is the only writer of exit states, but
// for a start that failed.
func (m *Manager) finish(id string, exit v1.Exit) {
	c, err := m.Container(id)
	if err != nil {
		return // a start that failed after its process had run; its group is gone
	}
	c.op.Lock() // an exit may overtake the end of its own Start
	defer c.op.Unlock()
	if c.State().CRI() != cri.ContainerState_CONTAINER_RUNNING {
		return
	}
	c.set(func(s *ContainerState) {
		s.FinishedAt, s.Exit, s.Reason, s.Message = exit.At, exit, reason(exit), message(exit)
		if s.FinishedAt.Before(s.StartedAt) {
			s.FinishedAt = s.StartedAt
		}
	})
	if err := m.saveContainer(c); err != nil {
		m.cfg.Log.Error("exit not recorded", "container", c.ID, "error", err)
	}
	if err := m.killGroup(c); err != nil { // before anybody hears of the end: nothing of it runs on
		m.cfg.Log.Error("processes of an ended container may run on", "container", c.ID, "error", err)
	}
	close(c.done)
	m.publish(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, c.PodID, c.ID)
	m.cfg.Log.Info("container ended", "container", c.ID, "name", c.Config.GetMetadata().GetName(), "code", exit.Code, "reason", reason(exit))
	m.clean(c)
}

func reason(x v1.Exit) string {
	switch {
	case x.OOMKilled:
		return "OOMKilled"
	case x.Unknown:
		return "Unknown"
	case x.Code == 0:
		return "Completed"
	}
	return "Error"
}

func message(x v1.Exit) string {
	if x.Unknown {
		return "nobody saw how the container ended: its supervisor was gone, or the node restarted"
	}
	return ""
}

func (m *Manager) killGroup(c *Container) error {
	group, err := m.Group(c)
	if err != nil {
		return err
	}
	return m.cfg.Cgroups.Kill(group)
}

// clean removes what an ended container leaves running or held: processes of its group, the group, the
// supervisor's record. Whatever fails is tried again at removal.
func (m *Manager) clean(c *Container) {
	defer close(c.cleaned)
	if err := m.release(c); err != nil {
		m.cfg.Log.Warn("ended container not fully cleaned, its removal tries again", "container", c.ID, "error", err)
	}
}

func (m *Manager) release(c *Container) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) //nolint:gosec // detached on purpose
	defer cancel()
	group, err := m.Group(c)
	if err != nil {
		return err
	}
	err = errors.Join(m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(group), m.shims.Delete(ctx, c.ID))
	return errors.Join(err, m.removeExit(c.ID))
}

// removeExit removes what a supervisor has written of a container: the record of its end, the log's journal, and what one
// that was killed in the middle has left.
func (m *Manager) removeExit(id string) (err error) {
	err = atomicfile.RemoveLeftovers(m.exitFile(id))
	for _, file := range []string{m.exitFile(id), m.exitFile(id) + ".output"} {
		if rerr := os.Remove(file); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
