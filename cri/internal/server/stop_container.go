package server

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopContainer stops a container within timeout seconds; it succeeds for one that is unknown.
func (s *Server) StopContainer(ctx context.Context, req *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	if err := need("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	grace := time.Duration(min(max(req.GetTimeout(), 0), 1<<31)) * time.Second
	return &cri.StopContainerResponse{}, s.pods.StopContainer(ctx, req.GetContainerId(), grace)
}
