package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandboxMetrics gives the metrics of all ready pods.
func (s *Server) ListPodSandboxMetrics(context.Context, *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: s.podMetrics()}, nil
}

func (s *Server) podMetrics() []*cri.PodSandboxMetrics {
	var out []*cri.PodSandboxMetrics
	for _, p := range s.podsBy(nil) {
		if !p.State().Ready {
			continue
		}
		if m, err := s.stats.Metrics(p); err == nil {
			out = append(out, m)
		}
	}
	return out
}
