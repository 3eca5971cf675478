package driver

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

func capacityResponse(free, smallest int64) *csi.GetCapacityResponse {
	return &csi.GetCapacityResponse{AvailableCapacity: free, MaximumVolumeSize: wrapperspb.Int64(free), MinimumVolumeSize: wrapperspb.Int64(smallest)}
}

// ListVolumes implements csi.ControllerServer. Inline volumes are the kubelet's and are not listed.
func (d *Driver) ListVolumes(_ context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	claimed := slices.DeleteFunc(d.m.Volumes(), func(v volume.Volume) bool { return v.Inline })
	all, next, err := page(claimed, r.GetMaxEntries(), r.GetStartingToken())
	if err != nil {
		return nil, err
	}
	out := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range all {
		out.Entries = append(out.Entries, &csi.ListVolumesResponse_Entry{Volume: d.volume(v)})
	}
	return out, nil
}

// ControllerGetVolume implements csi.ControllerServer.
func (d *Driver) ControllerGetVolume(_ context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if err := text("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	v, err := d.m.Volume(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{Volume: d.volume(v), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := text("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, errs.InvalidArgument.Errorf("volume_capabilities are missing")
	}
	if _, err := d.m.Volume(r.GetVolumeId()); err != nil {
		return nil, err
	}
	no := func(why error) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: why.Error()}, nil
	}
	for _, c := range r.GetVolumeCapabilities() {
		u, err := use(c)
		if err != nil {
			return no(err)
		}
		unsupported, err := d.m.Supports(r.GetVolumeId(), u)
		if err != nil {
			return nil, err
		}
		if unsupported != nil {
			return no(unsupported)
		}
	}
	var req volume.CreateRequest
	if err := parameters(r.GetParameters(), &req); err != nil {
		return no(err)
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}
