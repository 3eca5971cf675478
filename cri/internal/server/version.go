package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version names the runtime and the API.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version: "0.1.0", RuntimeName: s.info.Name, RuntimeVersion: s.info.Version, RuntimeApiVersion: "v1",
	}, nil
}
