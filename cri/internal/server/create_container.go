package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer prepares a container; see pod.Manager.Create.
func (s *Server) CreateContainer(ctx context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	if err := need("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if req.GetConfig() == nil {
		return nil, need("config", "")
	}
	id, err := s.pods.Create(ctx, req.GetPodSandboxId(), req.GetConfig())
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}
