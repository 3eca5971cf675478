package pod

import (
	"context"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/proto/errs"
)

// Update changes a container's limits: at once if it runs, else for its start. Fields that are zero keep their
// value, for the kernel too: a period alone, say, keeps the quota. Limits that the kernel refuses change nothing.
func (m *Manager) Update(_ context.Context, id string, r *cri.LinuxContainerResources) error {
	c, err := m.Container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	all := merge(c.State().Resources, r)
	limits, err := spec.Resources(all)
	if err != nil {
		return err
	}
	switch c.State().CRI() {
	case cri.ContainerState_CONTAINER_EXITED:
		return errs.FailedPrecondition.Errorf("container %s has ended", c.ID)
	case cri.ContainerState_CONTAINER_RUNNING:
		group, err := m.Group(c)
		if err != nil {
			return err
		}
		if err := m.cfg.Cgroups.Change(group, limits); err != nil {
			return err
		}
	}
	c.set(func(s *ContainerState) { s.Resources = all })
	return m.saveContainer(c)
}

// merge lays the fields that are set in r over those of old. Memory that changes alone leaves as much swap as there was:
// the CRI's swap limit is of both together.
func merge(old, r *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	out, _ := proto.Clone(old).(*cri.LinuxContainerResources) //nolint:errcheck // a clone has its own type
	set := func(to *int64, v int64) {
		if v != 0 {
			*to = v
		}
	}
	set(&out.CpuPeriod, r.GetCpuPeriod())
	set(&out.CpuQuota, r.GetCpuQuota())
	set(&out.CpuShares, r.GetCpuShares())
	if swap := out.MemorySwapLimitInBytes; swap > 0 && r.GetMemoryLimitInBytes() > 0 {
		out.MemorySwapLimitInBytes = r.GetMemoryLimitInBytes() + max(swap-out.MemoryLimitInBytes, 0)
	}
	set(&out.MemoryLimitInBytes, r.GetMemoryLimitInBytes())
	set(&out.MemorySwapLimitInBytes, r.GetMemorySwapLimitInBytes())
	set(&out.OomScoreAdj, r.GetOomScoreAdj())
	if r.GetCpusetCpus() != "" {
		out.CpusetCpus = r.GetCpusetCpus()
	}
	if r.GetCpusetMems() != "" {
		out.CpusetMems = r.GetCpusetMems()
	}
	if len(r.GetHugepageLimits()) > 0 {
		out.HugepageLimits = r.GetHugepageLimits()
	}
	for k, v := range r.GetUnified() {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return out
}

// UpdatePod keeps what the kubelet says of a pod's own limits, which it has applied itself (KEP-5419).
func (m *Manager) UpdatePod(_ context.Context, id string, overhead, r *cri.LinuxContainerResources) error {
	p, err := m.Pod(id)
	if err != nil {
		return err
	}
	b, err := proto.Marshal(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID, Overhead: overhead, Resources: r})
	if err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	p.set(func(s *PodState) { s.Resized = b })
	return m.savePod(p)
}

// ReopenLog continues a running container's log in a new file, which exists when it returns.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.Container(id)
	if err != nil {
		return err
	}
	if st := c.State().CRI(); st != cri.ContainerState_CONTAINER_RUNNING {
		return errs.FailedPrecondition.Errorf("container %s is %s: only a running container's log is reopened", c.ID, st)
	}
	return m.shims.ReopenLog(ctx, c.ID)
}
