package driver

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/nearest"
	"github.com/berth-project/berth/proto/errs"
)

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if err := text("name", r.GetName()); err != nil {
		return nil, err
	}
	req := volume.CreateRequest{Name: r.GetName(), Params: r.GetParameters()}
	var err error
	if req.Block, req.FSType, err = uses(r.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	if req.Required, req.Limit, err = capacity(r.GetCapacityRange()); err != nil {
		return nil, err
	}
	if err := parameters(r.GetParameters(), &req); err != nil {
		return nil, err
	}
	if req.Mutable, err = settings(r.GetMutableParameters()); err != nil {
		return nil, err
	}
	if req.Source, err = source(r.GetVolumeContentSource()); err != nil {
		return nil, err
	}
	if err := d.reachable(r.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	v, err := d.m.Create(ctx, req)
	if errs.Of(err) == errs.NotFound && r.GetAccessibilityRequirements() != nil && !req.Source.None() {
		// a node was chosen that does not have it: with NOT_FOUND a provisioner would never ask for another one
		err = errs.ResourceExhausted.Errorf("what is made of a source must be on the source's node: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: d.volume(v)}, nil
}

// metadata are the parameters that external-provisioner adds (--extra-create-metadata), for the operator's tables.
var metadata = map[string]string{ // read only
	"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "namespace", "csi.storage.k8s.io/pv/name": "pv",
}

// parameters reads those of a StorageClass, strictly.
func parameters(p map[string]string, req *volume.CreateRequest) error {
	if err := size("parameters", p); err != nil {
		return err
	}
	req.Owner = map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(p)) {
		value := p[key]
		switch {
		case key == "pool":
			req.Pool = value
		case key == "csi.storage.k8s.io/fstype":
			if req.FSType != "" && req.FSType != value {
				return errs.InvalidArgument.Errorf("parameters.%s: %q, but volume_capabilities say %q", key, value, req.FSType)
			}
			if !req.Block {
				req.FSType = value
			}
		case metadata[key] != "":
			req.Owner[metadata[key]] = value
		case strings.HasPrefix(key, "csi.storage.k8s.io/"):
			return errs.InvalidArgument.Errorf("parameters.%s is not known; of that prefix fstype, pvc/name, pvc/namespace and pv/name are", key)
		default:
			return errs.InvalidArgument.Errorf("parameters.%s is not known, nearest is %q", key, nearest.To(key, []string{"pool", "csi.storage.k8s.io/fstype"}))
		}
	}
	return nil
}

func source(s *csi.VolumeContentSource) (volume.Source, error) {
	if s == nil {
		return volume.Source{}, nil
	}
	switch {
	case s.GetSnapshot() != nil:
		id := s.GetSnapshot().GetSnapshotId()
		return volume.Source{Snapshot: id}, text("volume_content_source.snapshot_id", id)
	case s.GetVolume() != nil:
		id := s.GetVolume().GetVolumeId()
		return volume.Source{Volume: id}, text("volume_content_source.volume_id", id)
	}
	return volume.Source{}, errs.InvalidArgument.Errorf("volume_content_source: neither snapshot nor volume")
}

func (d *Driver) volume(v volume.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.Capacity, AccessibleTopology: []*csi.Topology{d.topology()}}
	switch {
	case v.Source.Snapshot != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.Source.Snapshot}}}
	case v.Source.Volume != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.Source.Volume}}}
	}
	return out
}

// DeleteVolume implements csi.ControllerServer.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := text("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, d.m.Delete(ctx, r.GetVolumeId())
}

// ControllerExpandVolume implements csi.ControllerServer.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := text("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if r.GetCapacityRange() == nil {
		return nil, errs.InvalidArgument.Errorf("capacity_range is missing")
	}
	required, limit, err := capacity(r.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	v, nodeGrows, err := d.m.Expand(ctx, r.GetVolumeId(), required, limit)
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Capacity, NodeExpansionRequired: nodeGrows}, err
}

// GetCapacity implements csi.ControllerServer.
func (d *Driver) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	var req volume.CreateRequest
	if err := parameters(r.GetParameters(), &req); err != nil {
		return nil, err
	}
	if len(r.GetVolumeCapabilities()) > 0 {
		if _, _, err := uses(r.GetVolumeCapabilities()); err != nil {
			return nil, err
		}
	}
	free, smallest := int64(0), int64(0)
	if r.GetAccessibleTopology() == nil || d.here(r.GetAccessibleTopology()) {
		var err error
		if free, smallest, err = d.m.Capacity(ctx, cmp.Or(req.Pool, d.m.DefaultPool())); err != nil {
			return nil, err
		}
	}
	return capacityResponse(free, smallest), nil
}
