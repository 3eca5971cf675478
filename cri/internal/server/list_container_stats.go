package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainerStats measures the containers that a filter selects and that run.
func (s *Server) ListContainerStats(ctx context.Context, req *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	return &cri.ListContainerStatsResponse{Stats: s.containerStats(req.GetFilter())}, nil
}

// containerStats leaves out containers that ended meanwhile: one that is gone must not spoil the list.
func (s *Server) containerStats(f *cri.ContainerStatsFilter) []*cri.ContainerStats {
	var out []*cri.ContainerStats
	for _, c := range s.containersBy(&cri.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}) {
		if c.State().CRI() != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if st, err := s.stats.Container(c); err == nil {
			out = append(out, st)
		}
	}
	return out
}
