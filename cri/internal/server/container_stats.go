package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats measures one container.
func (s *Server) ContainerStats(ctx context.Context, req *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.pods.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.stats.Container(c)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: st}, nil
}
