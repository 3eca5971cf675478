package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// needs checks what node calls must have.
func needs(id string, fields map[string]string, c *csi.VolumeCapability, wantCapability bool) error {
	if err := text("volume_id", id); err != nil {
		return err
	}
	for name, path := range fields {
		if path == "" {
			return errs.InvalidArgument.Errorf("%s is missing", name)
		}
	}
	if wantCapability && c == nil {
		return errs.InvalidArgument.Errorf("volume_capability is missing")
	}
	return nil
}

// NodeStageVolume implements csi.NodeServer.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	err := needs(r.GetVolumeId(), map[string]string{"staging_target_path": r.GetStagingTargetPath()}, r.GetVolumeCapability(), true)
	if err != nil {
		return nil, err
	}
	u, err := use(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, d.m.Stage(ctx, r.GetVolumeId(), r.GetStagingTargetPath(), u)
}

// NodeUnstageVolume implements csi.NodeServer.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	err := needs(r.GetVolumeId(), map[string]string{"staging_target_path": r.GetStagingTargetPath()}, nil, false)
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, d.m.Unstage(ctx, r.GetVolumeId(), r.GetStagingTargetPath())
}

// ephemeral is what the kubelet adds to the context of an inline volume (CSIDriver.podInfoOnMount).
const (
	contextPrefix = "csi.storage.k8s.io/"
	ephemeral     = contextPrefix + "ephemeral"
)

// NodePublishVolume implements csi.NodeServer.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	err := needs(r.GetVolumeId(), map[string]string{"target_path": r.GetTargetPath()}, r.GetVolumeCapability(), true)
	if err != nil {
		return nil, err
	}
	u, err := use(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if r.GetVolumeContext()[ephemeral] == "true" {
		return d.publishInline(ctx, r, u)
	}
	if r.GetStagingTargetPath() == "" {
		return nil, errs.FailedPrecondition.Errorf("staging_target_path is missing: NodeStageVolume must come first")
	}
	return &csi.NodePublishVolumeResponse{}, d.m.Publish(ctx, r.GetVolumeId(), volume.PublishRequest{
		Staging: r.GetStagingTargetPath(), Target: r.GetTargetPath(), ReadOnly: r.GetReadonly(), Use: u,
	})
}

// NodeUnpublishVolume implements csi.NodeServer.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	err := needs(r.GetVolumeId(), map[string]string{"target_path": r.GetTargetPath()}, nil, false)
	if err != nil {
		return nil, err
	}
	if d.m.IsInline(r.GetVolumeId()) {
		return &csi.NodeUnpublishVolumeResponse{}, d.m.UnpublishInline(ctx, r.GetVolumeId(), r.GetTargetPath())
	}
	return &csi.NodeUnpublishVolumeResponse{}, d.m.Unpublish(ctx, r.GetVolumeId(), r.GetTargetPath())
}

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	err := needs(r.GetVolumeId(), map[string]string{"volume_path": r.GetVolumePath()}, nil, false)
	if err != nil {
		return nil, err
	}
	v, u, err := d.m.Usage(ctx, d.m.Resolve(r.GetVolumeId()), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	out := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: u.Total, Used: u.Used, Available: u.Available}}}
	if !v.Block && u.Inodes > 0 {
		out.Usage = append(out.Usage, &csi.VolumeUsage{Unit: csi.VolumeUsage_INODES, Total: u.Inodes, Used: u.InodesUsed, Available: u.InodesAvail})
	}
	return out, nil
}

// NodeExpandVolume implements csi.NodeServer.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	err := needs(r.GetVolumeId(), map[string]string{"volume_path": r.GetVolumePath()}, nil, false)
	if err != nil {
		return nil, err
	}
	required, _, err := capacity(r.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	n, err := d.m.Grow(ctx, r.GetVolumeId(), r.GetVolumePath(), required)
	return &csi.NodeExpandVolumeResponse{CapacityBytes: n}, err
}
