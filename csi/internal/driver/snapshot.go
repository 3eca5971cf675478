package driver

import (
	"context"
	"maps"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// snapshotMetadata are the parameters that external-snapshotter adds (--extra-create-metadata).
var snapshotMetadata = map[string]bool{ // read only
	"csi.storage.k8s.io/volumesnapshot/name": true, "csi.storage.k8s.io/volumesnapshot/namespace": true,
	"csi.storage.k8s.io/volumesnapshotcontent/name":      true,
	"csi.storage.k8s.io/volumegroupsnapshot/name":        true,
	"csi.storage.k8s.io/volumegroupsnapshot/namespace":   true,
	"csi.storage.k8s.io/volumegroupsnapshotcontent/name": true,
}

func snapshotParameters(p map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(p)) {
		if !snapshotMetadata[k] {
			return errs.InvalidArgument.Errorf("parameters.%s is not known, a snapshot has none", k)
		}
	}
	return size("parameters", p)
}

// CreateSnapshot implements csi.ControllerServer.
func (d *Driver) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	for field, s := range map[string]string{"name": r.GetName(), "source_volume_id": r.GetSourceVolumeId()} {
		if err := text(field, s); err != nil {
			return nil, err
		}
	}
	if err := snapshotParameters(r.GetParameters()); err != nil {
		return nil, err
	}
	if err := d.reachable(r.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	s, err := d.m.CreateSnapshot(ctx, r.GetName(), r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.snapshot(s)}, nil
}

func (d *Driver) snapshot(s volume.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: s.ID, SourceVolumeId: s.Volume, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Created), ReadyToUse: true,
		GroupSnapshotId: s.Group, AccessibleTopology: []*csi.Topology{d.topology()},
	}
}

// DeleteSnapshot implements csi.ControllerServer.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := text("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, d.m.DeleteSnapshot(ctx, r.GetSnapshotId())
}

// GetSnapshot implements csi.ControllerServer.
func (d *Driver) GetSnapshot(_ context.Context, r *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if err := text("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	s, err := d.m.Snapshot(r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: d.snapshot(s)}, nil
}

// ListSnapshots implements csi.ControllerServer. A filter that matches nothing is an empty list.
func (d *Driver) ListSnapshots(_ context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	var match []volume.Snapshot
	for _, s := range d.m.Snapshots() {
		if (r.GetSnapshotId() == "" || s.ID == r.GetSnapshotId()) && (r.GetSourceVolumeId() == "" || s.Volume == r.GetSourceVolumeId()) {
			match = append(match, s)
		}
	}
	all, next, err := page(match, r.GetMaxEntries(), r.GetStartingToken())
	if err != nil {
		return nil, err
	}
	out := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range all {
		out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: d.snapshot(s)})
	}
	return out, nil
}

// CreateVolumeGroupSnapshot implements csi.GroupControllerServer.
func (d *Driver) CreateVolumeGroupSnapshot(ctx context.Context, r *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if err := text("name", r.GetName()); err != nil {
		return nil, err
	}
	if len(r.GetSourceVolumeIds()) == 0 {
		return nil, errs.InvalidArgument.Errorf("source_volume_ids are missing")
	}
	if err := snapshotParameters(r.GetParameters()); err != nil {
		return nil, err
	}
	g, all, err := d.m.CreateGroup(ctx, r.GetName(), r.GetSourceVolumeIds())
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: d.group(g, all)}, nil
}

func (d *Driver) group(g volume.Group, all []volume.Snapshot) *csi.VolumeGroupSnapshot {
	out := &csi.VolumeGroupSnapshot{GroupSnapshotId: g.ID, CreationTime: timestamppb.New(g.Created), ReadyToUse: true}
	for _, s := range all {
		out.Snapshots = append(out.Snapshots, d.snapshot(s))
	}
	return out
}

// DeleteVolumeGroupSnapshot implements csi.GroupControllerServer.
func (d *Driver) DeleteVolumeGroupSnapshot(ctx context.Context, r *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if err := text("group_snapshot_id", r.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, d.m.DeleteGroup(ctx, r.GetGroupSnapshotId(), r.GetSnapshotIds())
}

// GetVolumeGroupSnapshot implements csi.GroupControllerServer.
func (d *Driver) GetVolumeGroupSnapshot(_ context.Context, r *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	if err := text("group_snapshot_id", r.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	g, all, err := d.m.Group(r.GetGroupSnapshotId(), r.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: d.group(g, all)}, nil
}
