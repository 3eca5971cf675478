package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// Exec returns the URL of an interactive command.
func (s *Server) Exec(_ context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := s.running(req.GetContainerId()); err != nil {
		return nil, err
	}
	return s.stream.GetExec(req)
}

func (s *Server) running(id string) error {
	c, err := s.pods.Container(id)
	if err != nil {
		return err
	}
	if st := c.State().CRI(); st != cri.ContainerState_CONTAINER_RUNNING {
		return errs.FailedPrecondition.Errorf("container %s is %s, not running", c.ID, st)
	}
	return nil
}
