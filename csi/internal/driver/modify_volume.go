package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// settings are mutable parameters without the words that external-resizer adds for the operator
// (--extra-modify-metadata); which there are depends on the pool, so the domain checks them.
func settings(p map[string]string) (map[string]string, error) {
	if err := size("mutable_parameters", p); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for k, v := range p {
		if metadata[k] == "" {
			out[k] = v
		}
	}
	return out, nil
}

// ControllerModifyVolume implements csi.ControllerServer.
func (d *Driver) ControllerModifyVolume(ctx context.Context, r *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	if err := text("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	set, err := settings(r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, d.m.Modify(ctx, r.GetVolumeId(), set)
}
