package server

import (
	"context"
	"encoding/json"
	"errors"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// ImageStatus tells of one image; one that is absent is an empty answer, no error.
func (s *Server) ImageStatus(ctx context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if err := need("image.image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	i, err := s.images.Get(req.GetImage().GetImage())
	if errors.Is(err, errs.NotFound) {
		return &cri.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &cri.ImageStatusResponse{Image: imageItem(i)}
	if req.GetVerbose() {
		b, err := json.Marshal(map[string]any{"chain": i.Chain, "imageSpec": i.Config})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(b)}
	}
	return resp, nil
}
