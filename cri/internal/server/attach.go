package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Attach returns the URL of a connection to the streams of a running container.
func (s *Server) Attach(ctx context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := s.running(req.GetContainerId()); err != nil {
		return nil, err
	}
	return s.stream.GetAttach(req)
}
