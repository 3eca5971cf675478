package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes limits of a container.
func (s *Server) UpdateContainerResources(ctx context.Context, req *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if req.GetLinux() == nil {
		return &cri.UpdateContainerResourcesResponse{}, nil
	}
	return &cri.UpdateContainerResourcesResponse{}, s.pods.Update(ctx, req.GetContainerId(), req.GetLinux())
}
