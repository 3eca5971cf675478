package driver

import (
	"context"
	"maps"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/csi/internal/volume"
)

// ControllerGetVolumeHealth implements csi.ControllerServer.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, r *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	h, err := d.health(ctx, r.GetVolumeId())
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: h}, err
}

// NodeGetVolumeHealth implements csi.NodeServer.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	h, err := d.health(ctx, r.GetVolumeId())
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: h}, err
}

func (d *Driver) health(ctx context.Context, id string) (*csi.VolumeHealth, error) {
	if err := text("volume_id", id); err != nil {
		return nil, err
	}
	all, err := d.m.Health(ctx, d.m.Resolve(id))
	if err != nil {
		return nil, err
	}
	h := &csi.VolumeHealth{VolumeId: id}
	for _, c := range all {
		h.HealthStatuses = append(h.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Status: severity(c), Reason: c.Reason, Message: c.Message})
	}
	return h, nil
}

func severity(c volume.Condition) csi.VolumeHealthErrorType {
	switch {
	case c.Reason == "StorageLost":
		return csi.VolumeHealthErrorType_DATA_LOSS
	case c.Fatal:
		return csi.VolumeHealthErrorType_INACCESSIBLE
	}
	return csi.VolumeHealthErrorType_DEGRADED
}

// ControllerListVolumeHealth implements csi.ControllerServer: the volumes that something is wrong with.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, r *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	var sick []*csi.VolumeHealth
	for _, v := range d.m.Volumes() {
		h, err := d.health(ctx, v.ID)
		if err != nil {
			return nil, err
		}
		if len(h.GetHealthStatuses()) > 0 {
			sick = append(sick, h)
		}
	}
	all, next, err := page(sick, r.GetMaxEntries(), r.GetStartingToken())
	return &csi.ControllerListVolumeHealthResponse{Entries: all, NextToken: next}, err
}

// NodeGetStorageHealth implements csi.NodeServer.
func (d *Driver) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	out := &csi.NodeGetStorageHealthResponse{}
	pools := d.m.PoolHealth(ctx)
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		for _, c := range pools[name] {
			status := csi.StorageHealthErrorType_STORAGE_DEGRADED
			if c.Fatal {
				status = csi.StorageHealthErrorType_STORAGE_UNREACHABLE
			}
			out.BackendHealth = append(out.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
				Status: status, Reason: c.Reason, Message: "pool " + name + ": " + c.Message,
			})
		}
	}
	return out, nil
}
