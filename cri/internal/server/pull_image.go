package server

import (
	"context"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/proto/errs"
)

// PullImage brings an image to the node and returns its id.
func (s *Server) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if err := need("image.image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	i, err := s.images.Pull(ctx, req.GetImage().GetImage(), credentials(req.GetAuth()))
	if err != nil {
		return nil, known(err)
	}
	return &cri.PullImageResponse{ImageRef: i.ID}, nil
}

func credentials(a *cri.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

// known gives the errors that the kubelet tells its users a reason for the form it looks for: a prefix, after code
// Unknown (kubelet/images, cri-api/pkg/errors).
func known(err error) error {
	const prefix = "RegistryUnavailable"
	if rest, ok := strings.CutPrefix(err.Error(), prefix+": "); ok {
		return &errs.Prefixed{Prefix: prefix, Err: errs.Unavailable.Errorf("%s", rest)}
	}
	return err
}
