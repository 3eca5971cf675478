package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveImage removes an image with all its names; it succeeds for one that is absent.
func (s *Server) RemoveImage(ctx context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	if err := need("image.image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	return &cri.RemoveImageResponse{}, s.images.Remove(ctx, req.GetImage().GetImage())
}
