package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

// killLimit is how long a killed container may take to die. One that is stuck in the kernel (D state) takes
// longer; the call then fails, the state stays RUNNING, and a later call succeeds.
const killLimit = 30 * time.Second

var failStopSignalled = failpoint.New("cri.stop.after_signal")

// StopContainer sends a container its stop signal and kills it after grace; grace 0 kills at once. It is
// idempotent: an unknown or ended container is stopped. Every call has its own clock, so a later one with a
// shorter grace shortens the wait of all. The stop goes on if the caller leaves.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.Container(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.stopContainer(ctx, c, grace)
}

func (m *Manager) stopContainer(ctx context.Context, c *Container, grace time.Duration) error {
	if c.State().CRI() != cri.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	work, done := m.detach(ctx, grace+2*killLimit)
	result := make(chan error, 1)
	go func() {
		defer done()
		result <- m.terminate(work, c, grace)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop of container %s goes on: %w", c.ID, ctx.Err())
	}
}

func (m *Manager) terminate(ctx context.Context, c *Container, grace time.Duration) error {
	if grace > 0 {
		if err := m.askToStop(c); err != nil {
			return err
		}
		if err := failStopSignalled.Hit(); err != nil {
			return err
		}
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-c.done:
			return nil
		case <-t.C:
		case <-ctx.Done(): // the daemon ends: its successor is asked again, the grace is not cut short
			return ctx.Err()
		}
	}
	if err := m.kill(c); err != nil {
		return err
	}
	return m.awaitDeath(ctx, c)
}

// askToStop sends the stop signal, once however many stops there are.
func (m *Manager) askToStop(c *Container) error {
	first := false
	c.set(func(s *ContainerState) { first, s.Stopping = !s.Stopping, true })
	if !first {
		return nil
	}
	return m.signal(c, c.Stop)
}

// kill ends everything in the container's group, by the kernel alone; no supervisor is asked.
func (m *Manager) kill(c *Container) error {
	group, err := m.Group(c)
	if err != nil {
		return err
	}
	return errors.Join(m.cfg.Cgroups.Kill(group), m.signal(c, unix.SIGKILL))
}

// awaitDeath waits for the exit to be recorded. A supervisor that does not tell of it, though the process is dead,
// is waited for a second; then the kernel's own word counts, if it has one within six.
func (m *Manager) awaitDeath(ctx context.Context, c *Container) error {
	limit := time.NewTimer(killLimit)
	defer limit.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	dead := 0
	for {
		select {
		case <-c.done:
			return nil
		case <-tick.C:
			if m.dead(c) {
				dead++
			}
			if dead < 10 {
				continue
			}
			if x := m.shims.ExitOf(c.ID); !x.Unknown || dead >= 60 {
				m.finish(c.ID, x)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return errs.DeadlineExceeded.Errorf("container %s was killed but does not die (stuck in the kernel?): pids %v", c.ID, m.stuck(c))
		}
	}
}

func (m *Manager) stuck(c *Container) []int {
	group, err := m.Group(c)
	if err != nil {
		return nil
	}
	return m.cfg.Cgroups.Pids(group)
}

// settled waits, briefly, for the cleaning that follows an exit, so that a stopped pod leaves no group.
func (m *Manager) settled(ctx context.Context, c *Container) {
	if c.State().CRI() != cri.ContainerState_CONTAINER_EXITED {
		return
	}
	select {
	case <-c.cleaned:
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
	}
}
