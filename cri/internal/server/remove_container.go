package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveContainer removes a container; it succeeds for one that is unknown.
func (s *Server) RemoveContainer(ctx context.Context, req *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	if err := need("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.RemoveContainerResponse{}, s.pods.RemoveContainer(ctx, req.GetContainerId())
}
