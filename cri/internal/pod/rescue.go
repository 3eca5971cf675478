package pod

import (
	"context"
	"maps"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// rescueLimit bounds the rescue of one pod.
const rescueLimit = 5 * time.Second

// rescue gives containers whose supervisor was killed together with the daemon to another one, their pods too, and adds them
// to what was found. A pod of which no container runs has nothing that holds its namespaces: it is lost.
func (m *Manager) rescue(ctx context.Context, found shims.Found, lost func(container string) bool) {
	for _, p := range m.Pods() {
		if err := m.rescuePod(ctx, p, found, lost); err != nil {
			m.cfg.Log.Error("pod of a supervisor that is gone not rescued: its containers are ended", "pod", p.ID, "error", err)
		}
	}
}

func (m *Manager) rescuePod(ctx context.Context, p *Pod, found shims.Found, lost func(container string) bool) error {
	p.op.Lock() // a stop must not tear it down in between
	defer p.op.Unlock()
	if st := p.State(); !st.Ready || st.Creating {
		return nil
	}
	o, err := m.orphan(p, found, lost)
	if err != nil || len(o.Containers) == 0 {
		return err
	}
	if len(o.Namespaces) == 0 && len(p.namespaces()) > 0 {
		return errs.FailedPrecondition.Errorf("its namespaces were not recorded, by an earlier build")
	}
	bounded, cancel := context.WithTimeout(ctx, rescueLimit)
	defer cancel()
	running, err := m.shims.Rescue(bounded, o)
	if err != nil {
		return err
	}
	m.cfg.Log.Warn("containers whose supervisor and daemon were killed together are rescued", "pod", p.ID, "containers", len(running))
	found.Pods[p.ID] = v1.PodState{ID: p.ID, Namespaces: slices.Collect(maps.Keys(o.Namespaces))}
	for _, st := range running {
		found.Containers[st.ID] = st
	}
	return nil
}

// orphan is what the records say of a pod and those of its containers that run.
func (m *Manager) orphan(p *Pod, found shims.Found, lost func(container string) bool) (shims.OrphanPod, error) {
	base, err := m.base(p)
	if err != nil {
		return shims.OrphanPod{}, err
	}
	o := shims.OrphanPod{ID: p.ID, Namespaces: p.State().Namespaces, Net: m.network.Path(p.ID), Group: base + "/" + p.ID}
	for _, c := range m.Containers() {
		st := c.State()
		_, known := found.Containers[c.ID]
		if c.PodID != p.ID || known || !lost(c.ID) || st.CRI() != cri.ContainerState_CONTAINER_RUNNING || st.Pid == 0 {
			continue
		}
		group, err := m.Group(c)
		if err != nil {
			return o, err
		}
		if slices.Contains(m.cfg.Cgroups.Pids(group), st.Pid) {
			o.Containers = append(o.Containers, shims.Orphan{Static: m.static(c, group), OCI: m.oci(c, p), Pid: st.Pid, Started: st.StartedAt, Pipes: st.Pipes, Group: group})
		}
	}
	return o, nil
}
