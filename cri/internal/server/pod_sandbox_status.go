package server

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStatus tells of one pod; NotFound if it is gone.
func (s *Server) PodSandboxStatus(_ context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	p, err := s.pods.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	// timestamp and containers_statuses go together or not at all (kubernetes#129990)
	resp := &cri.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano(), Status: sandboxStatus(p)}
	for _, c := range s.pods.ContainersOf(p.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(c))
	}
	if req.GetVerbose() {
		resp.Info, err = sandboxInfo(p)
	}
	return resp, err
}
