package pod

import (
	"context"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/cri/internal/spec"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// rescueLimit bounds the rescue of one pod.
const rescueLimit = 5 * time.Second

// rescue gives containers whose supervisor was killed together with the daemon to another one, their pods too, and adds them
// to what was found. A pod of which no container runs has nothing that holds its namespaces: it is lost.
func (m *Manager) rescue(ctx context.Context, found shims.Found, lost func(container string) bool) {
	for _, p := range m.Pods() {
		if st := p.State(); !st.Ready || st.Creating {
			continue
		}
		o, err := m.orphan(p, found, lost)
		if err == nil && len(o.Containers) == 0 {
			continue
		}
		var running []v1.ContainerState
		if err == nil {
			bounded, cancel := context.WithTimeout(ctx, rescueLimit)
			running, err = m.shims.Rescue(bounded, o)
			cancel()
		}
		if err != nil {
			m.cfg.Log.Error("pod of a supervisor that is gone not rescued: its containers are ended", "pod", p.ID, "error", err)
			continue
		}
		m.cfg.Log.Warn("containers whose supervisor and daemon were killed together are rescued", "pod", p.ID, "containers", len(running))
		found.Pods[p.ID] = v1.PodState{ID: p.ID, Namespaces: o.Kinds}
		for _, st := range running {
			found.Containers[st.ID] = st
		}
	}
}

// orphan is what the records say of a pod and those of its containers that run.
func (m *Manager) orphan(p *Pod, found shims.Found, lost func(container string) bool) (shims.OrphanPod, error) {
	base, err := m.base(p)
	if err != nil {
		return shims.OrphanPod{}, err
	}
	o := shims.OrphanPod{ID: p.ID, Kinds: p.namespaces(), Net: m.network.Path(p.ID), Group: base + "/" + p.ID}
	if spec.UserNamespaced(p.Config) {
		o.Kinds = append(o.Kinds, "user")
	}
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
