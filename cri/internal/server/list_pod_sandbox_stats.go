package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandboxStats measures the pods that a filter selects and that are ready.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	return &cri.ListPodSandboxStatsResponse{Stats: s.podStats(req.GetFilter())}, nil
}

func (s *Server) podStats(f *cri.PodSandboxStatsFilter) []*cri.PodSandboxStats {
	var out []*cri.PodSandboxStats
	for _, p := range s.podsBy(&cri.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()}) {
		if !p.State().Ready {
			continue
		}
		if st, err := s.stats.Pod(p); err == nil {
			out = append(out, st)
		}
	}
	return out
}
