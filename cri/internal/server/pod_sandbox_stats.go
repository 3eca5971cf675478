package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStats measures one pod.
func (s *Server) PodSandboxStats(ctx context.Context, req *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	p, err := s.pods.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.stats.Pod(p)
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: st}, nil
}
