package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemovePodSandbox removes a pod; it succeeds for one that is unknown.
func (s *Server) RemovePodSandbox(ctx context.Context, req *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	if err := need("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.RemovePodSandboxResponse{}, s.pods.Remove(ctx, req.GetPodSandboxId())
}
