package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// PortForward returns the URL of a tunnel into a pod.
func (s *Server) PortForward(ctx context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	p, err := s.pods.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !p.State().Ready {
		return nil, errs.FailedPrecondition.Errorf("pod %s is not ready", p.ID)
	}
	return s.stream.GetPortForward(req)
}
