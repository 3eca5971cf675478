package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListImages lists the images a filter names, or all.
func (s *Server) ListImages(ctx context.Context, req *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: s.imagesBy(req.GetFilter())}, nil
}

func (s *Server) imagesBy(f *cri.ImageFilter) []*cri.Image {
	var out []*cri.Image
	if ref := f.GetImage().GetImage(); ref != "" {
		if i, err := s.images.Get(ref); err == nil {
			out = append(out, imageItem(i))
		}
		return out
	}
	for _, i := range s.images.List() {
		out = append(out, imageItem(i))
	}
	return out
}
