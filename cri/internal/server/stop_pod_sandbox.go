package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopPodSandbox stops a pod; it succeeds for one that is unknown.
func (s *Server) StopPodSandbox(ctx context.Context, req *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	if err := need("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.StopPodSandboxResponse{}, s.pods.Stop(ctx, req.GetPodSandboxId())
}
