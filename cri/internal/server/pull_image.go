package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/image"
)

// PullImage brings an image to the node and returns its id.
func (s *Server) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if err := need("image.image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	i, err := s.images.Pull(ctx, req.GetImage().GetImage(), credentials(req.GetAuth()))
	if err != nil {
		return nil, err
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
