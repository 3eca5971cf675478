package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainers lists the containers a filter selects, oldest first.
func (s *Server) ListContainers(ctx context.Context, req *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	resp := &cri.ListContainersResponse{}
	for _, c := range s.containersBy(req.GetFilter()) {
		resp.Containers = append(resp.Containers, containerItem(c))
	}
	return resp, nil
}
