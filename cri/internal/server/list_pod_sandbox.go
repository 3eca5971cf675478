package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandbox lists the pods a filter selects, oldest first.
func (s *Server) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	resp := &cri.ListPodSandboxResponse{}
	for _, p := range s.podsBy(req.GetFilter()) {
		resp.Items = append(resp.Items, sandboxItem(p))
	}
	return resp, nil
}
