package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes limits of a container.
func (s *Server) UpdateContainerResources(ctx context.Context, req *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if req.GetLinux() == nil { // nothing to change, of a container that must exist all the same
		_, err := s.pods.Container(req.GetContainerId())
		return &cri.UpdateContainerResourcesResponse{}, err
	}
	return &cri.UpdateContainerResourcesResponse{}, s.pods.Update(ctx, req.GetContainerId(), req.GetLinux())
}
