package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/internal/atomicfile"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Recover makes the manager's view match the node, after a restart of the daemon or of the machine: records say
// what should be, supervisors and exit records what is. It is called once, before any request is served.
//
// A record of an earlier boot is listed NOTREADY or EXITED (255, Unknown) and keeps everything else; its network
// attachment is deleted without a namespace. A pod whose making was interrupted is torn down. What runs without the
// supervisor that it had is given to another one. What supervisors
// hold without a record, or with one that nobody can read, is ended: what is not listed nobody could stop.
func (m *Manager) Recover(ctx context.Context) error {
	oldPods, err := m.loadPods()
	if err != nil {
		return err
	}
	oldContainers, err := m.loadContainers()
	if err != nil {
		return err
	}
	if err := m.recoverProfiles(); err != nil {
		m.cfg.Log.Error("seccomp profiles: containers that name a lost one take no exec", "error", err)
	}
	found, err := m.shims.Recover(ctx, m.regained)
	if err != nil {
		return err
	}
	if found.Silent == 0 {
		m.rescue(ctx, found, func(id string) bool { return !oldContainers[id] })
	}
	m.recoverContainers(found, oldContainers)
	close(m.recovered)
	m.recoverPods(ctx, found, oldPods)
	m.addLeftovers(found)
	m.endStrangers(ctx, found)
	close(m.whole)
	m.images.Retain(m.holders())
	m.emptyTrash()
	gctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := m.network.GC(gctx, m.validAttachments()); err != nil {
		m.cfg.Log.Warn("CNI GC", "error", err)
	}
	m.checkNetworks(ctx)
	return nil
}

// checkNetworks asks the plugins, in the background and one pod at a time, whether every recovered pod is still
// connected as it was (CNI CHECK), and names those that are not. It mends nothing: that is the kubelet's to decide.
func (m *Manager) checkNetworks(ctx context.Context) {
	work, done := m.detach(ctx, 10*time.Minute)
	go func() {
		defer done()
		for _, p := range m.Pods() {
			if ctx.Err() != nil || !p.State().Ready || p.hostNetwork() {
				continue
			}
			path, err := m.repin(p)
			if err == nil {
				err = m.network.Check(work, m.attachment(p, path))
			}
			if err != nil && p.State().Ready {
				m.cfg.Log.Warn("pod's network is not as it was made", "pod", p.ID, "error", err)
			}
		}
	}()
}

// repin makes sure that a ready pod's namespace has its path.
func (m *Manager) repin(p *Pod) (string, error) {
	p.op.Lock() // a stop must not unpin it in between
	defer p.op.Unlock()
	ns, err := m.NamespacePath(p)
	if err != nil {
		return "", err
	}
	defer ns.Close() //nolint:errcheck // a namespace
	return m.network.Pin(p.ID, ns)
}

// errNewer refuses the start of a daemon that is older than its records: it would take every pod for a stranger.
var errNewer = errors.New("a record of a newer berth-cri: run that one, or drain the node with it before going back")

// loadPods reads the records and returns which of them are of an earlier boot.
func (m *Manager) loadPods() (map[string]bool, error) {
	raw, err := m.records.Load(podKind)
	if err != nil {
		return nil, err
	}
	old := map[string]bool{}
	for id, b := range raw {
		p, boot, err := decodePod(b)
		if errors.Is(err, errNewer) {
			return nil, fmt.Errorf("pod %s: %w", id, err)
		}
		if err != nil {
			m.records.Quarantine(podKind, id, err)
			continue
		}
		old[p.ID] = boot != m.cfg.Features.BootID
		m.pods[p.ID] = p
	}
	return old, nil
}

func (m *Manager) loadContainers() (map[string]bool, error) {
	raw, err := m.records.Load(containerKind)
	if err != nil {
		return nil, err
	}
	old := map[string]bool{}
	for id, b := range raw {
		c, boot, err := decodeContainer(b)
		if errors.Is(err, errNewer) {
			return nil, fmt.Errorf("container %s: %w", id, err)
		}
		if err != nil {
			m.records.Quarantine(containerKind, id, err)
			continue
		}
		if m.pods[c.PodID] == nil {
			m.dropContainer(c, "container of a pod that is gone is removed")
			continue
		}
		if err := m.loadSpec(c); err != nil {
			switch c.State().CRI() {
			case cri.ContainerState_CONTAINER_CREATED: // the spec is the last that Create writes
				m.dropContainer(c, "container whose making was interrupted is removed")
				continue
			case cri.ContainerState_CONTAINER_RUNNING:
				m.cfg.Log.Error("container's spec is lost: it runs, but takes no exec", "container", id, "error", err)
			}
		}
		old[c.ID] = boot != m.cfg.Features.BootID
		m.containers[c.ID] = c
	}
	return old, nil
}

func (m *Manager) dropContainer(c *Container, why string) {
	m.cfg.Log.Warn(why, "container", c.ID)
	if err := errors.Join(m.endGroup(c.ID), m.discardContainer(c), m.removeExit(c.ID)); err != nil {
		m.cfg.Log.Error("container not removed", "container", c.ID, "error", err)
	}
}

func (m *Manager) recoverContainers(found shims.Found, old map[string]bool) {
	for _, c := range m.Containers() {
		st, known := found.Containers[c.ID]
		switch c.State().CRI() {
		case cri.ContainerState_CONTAINER_EXITED:
			close(c.done)
			close(c.cleaned)
			if err := m.release(c); err != nil {
				m.cfg.Log.Warn("ended container not fully cleaned", "container", c.ID, "error", err)
			}
			continue
		case cri.ContainerState_CONTAINER_CREATED:
			if !known && found.Silent > 0 && !old[c.ID] && m.lives(c) {
				m.started(c, v1.ContainerState{}) // and not recorded before the daemon died
				m.limbo.put(c.ID)
				continue
			}
			if !known && !old[c.ID] && m.wasStarted(c) { // its start was not recorded, and who knew of it is gone
				m.started(c, st)
				break
			}
			if !known { // a start that was interrupted before its supervisor answered, or none
				if err := m.release(c); err != nil {
					m.cfg.Log.Warn("container's group not cleaned", "container", c.ID, "error", err)
				}
				continue
			}
			c.set(func(s *ContainerState) { s.StartedAt, s.Pid = st.StartedAt, st.Pid })
		}
		switch {
		case known && st.Exit == nil && !old[c.ID]:
			m.resume(c)
			continue
		case !known && !old[c.ID] && found.Silent > 0 && !m.exitRecorded(c): // dead or alive: its supervisor knows the code
			m.limbo.put(c.ID)
			continue
		}
		m.finish(c.ID, m.lastWord(c, st, known))
	}
}

// resume tells the pool what an adopting supervisor would need of a running container.
func (m *Manager) resume(c *Container) {
	group, err := m.Group(c)
	if err != nil {
		m.cfg.Log.Error("container without a group", "container", c.ID, "error", err)
		return
	}
	p, err := m.Pod(c.PodID)
	if err != nil {
		m.cfg.Log.Error("container without a pod", "container", c.ID, "error", err)
		return
	}
	m.shims.SetStatic(m.static(c, group), m.oci(c, p))
	pipes := m.shims.Pipes(c.ID)
	c.set(func(s *ContainerState) { s.Pipes = pipes })
	for _, exec := range m.cfg.Cgroups.Execs(group) { // nobody of this daemon waits for their end
		c.leave(exec, m.cfg.Cgroups.RemoveExec)
	}
	if err := m.saveContainer(c); err != nil {
		m.cfg.Log.Error("container not recorded", "container", c.ID, "error", err)
	}
}

// lastWord is the best that is known of a container's end: its supervisor's, its exit record, the kernel's.
func (m *Manager) lastWord(c *Container, st v1.ContainerState, known bool) v1.Exit {
	if known && st.Exit != nil {
		return *st.Exit
	}
	var x v1.Exit
	b, err := atomicfile.ReadSealed(m.exitFile(c.ID))
	if err == nil {
		err = json.Unmarshal(b, &x)
	}
	if err == nil {
		return x
	}
	if !errors.Is(err, os.ErrNotExist) {
		m.cfg.Log.Error("exit record is damaged", "container", c.ID, "error", err)
	}
	return v1.Exit{Code: 255, Unknown: true, At: m.cfg.Now()}
}

func (m *Manager) recoverPods(ctx context.Context, found shims.Found, old map[string]bool) {
	for _, p := range m.Pods() {
		st := p.State()
		_, held := found.Pods[p.ID]
		switch {
		case st.Creating:
			m.cfg.Log.Warn("pod whose making was interrupted is torn down", "pod", p.ID)
			if err := errors.Join(m.teardown(ctx, p)); err == nil {
				if err := m.forgetPod(p); err != nil {
					m.cfg.Log.Error("pod not forgotten", "pod", p.ID, "error", err)
				}
				continue
			}
			p.set(func(s *PodState) { s.Creating, s.Undone = false, true })
		case st.Ready && held && !old[p.ID]:
			own := m.shims.Identities(p.ID)
			if maps.Equal(own, st.Namespaces) {
				continue
			}
			p.set(func(s *PodState) { s.Namespaces = own }) // an earlier build has not recorded them
		case st.Ready && found.Silent > 0 && !old[p.ID]:
			m.limbo.put(p.ID)
			continue
		case st.Ready:
			m.lose(ctx, p, old[p.ID])
		}
		if err := m.savePod(p); err != nil {
			m.cfg.Log.Error("pod not recorded", "pod", p.ID, "error", err)
		}
	}
}

// lose makes a pod whose namespaces are gone NOTREADY and frees its network attachment.
func (m *Manager) lose(ctx context.Context, p *Pod, reboot bool) {
	m.cfg.Log.Warn("pod lost its namespaces", "pod", p.ID, "reboot", reboot)
	if err := m.teardown(ctx, p); err != nil {
		m.cfg.Log.Error("lost pod not torn down, its stop tries again", "pod", p.ID, "error", err)
		p.set(func(s *PodState) { s.Ready = false })
		return
	}
	p.set(func(s *PodState) { s.Ready, s.Network, s.Result, s.Undone = false, "", nil, false })
}

// holders are the image pins that must exist: one per container, one per image volume. An image is named by its id,
// since one that was removed under its containers has no name any more, and a name may stand for another one by now.
func (m *Manager) holders() map[string]string {
	all := map[string]string{}
	for _, c := range m.Containers() {
		all[c.ID] = c.ImageID
		for h, ref := range imagesOf(c) {
			img, err := m.images.Get(ref)
			if err != nil {
				m.cfg.Log.Error("image volume of a container that an earlier build made is not held", "container", c.ID, "image", ref, "error", err)
				continue
			}
			c.volumes[h] = img.ID
		}
		for h, id := range c.volumes {
			if id != "" {
				all[h] = id
			}
		}
	}
	return all
}
