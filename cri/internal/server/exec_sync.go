package server

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync runs a command and returns its output; an exit code is no error.
func (s *Server) ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	timeout := time.Duration(max(req.GetTimeout(), 0)) * time.Second
	stdout, stderr, code, err := s.pods.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}
