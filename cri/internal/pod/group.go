package pod

import (
	"context"
	"errors"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
)

// groupAhead makes a created container's cgroup while the answer to Create is on its way: what is created is started
// next, and the group is a fifth of a start. What goes wrong here is tried again, and said, by Start.
func (m *Manager) groupAhead(c *Container, p *Pod) {
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		c.op.Lock()
		defer c.op.Unlock()
		if c.State().CRI() != cri.ContainerState_CONTAINER_CREATED || c.barred || !p.State().Ready {
			return
		}
		if group, err := m.Group(c); err == nil {
			_ = m.makeGroup(c, group) // see above
		}
	}()
}

// makeGroup makes a container's cgroup with its limits and devices, or brings the limits of the one it has up to
// date. The caller holds c.op. On failure there is no group.
func (m *Manager) makeGroup(c *Container, group string) error {
	limits := c.State().Resources // replaced when it changes, see Update
	if c.grouped == limits {
		return nil
	}
	r, err := spec.Resources(limits)
	if err != nil {
		return err
	}
	fresh := c.grouped == nil
	if err = m.ensurePodScope(c.PodID); err == nil {
		err = m.cfg.Cgroups.Ensure(group)
	}
	if err == nil {
		err = m.cfg.Cgroups.Set(group, r)
	}
	if err == nil && fresh {
		err = m.cfg.Cgroups.SetDevices(group, c.spec.Linux.Resources.Devices)
	}
	if err != nil {
		c.grouped = nil
		return errors.Join(err, m.cfg.Cgroups.Remove(group))
	}
	c.grouped = limits
	return nil
}

// ensurePodScope is ensureScope for a container's pod, whose unit ends with its last process if its holder was killed.
func (m *Manager) ensurePodScope(id string) error {
	p, err := m.Pod(id)
	if err != nil || !p.Scoped {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return m.ensureScope(ctx, p)
}

// bar lets a container not be started any more, and removes the cgroup of one that never was. A start that is under
// way is waited for.
func (m *Manager) bar(c *Container) error {
	if c.State().CRI() == cri.ContainerState_CONTAINER_EXITED {
		return nil // for good; the cleaning after its end may hold the lock for as long as a hung supervisor is waited for
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.barred = true
	if c.grouped == nil || c.State().CRI() != cri.ContainerState_CONTAINER_CREATED {
		return nil
	}
	group, err := m.Group(c)
	if err != nil {
		return err
	}
	if err := m.cfg.Cgroups.Remove(group); err != nil {
		return err
	}
	c.grouped = nil
	return nil
}
