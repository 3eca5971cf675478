package driver

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// mostRanges is how many ranges one message of a stream holds: 1024 of them are 20 KiB.
const mostRanges = 1024

// GetMetadataAllocated implements csi.SnapshotMetadataServer.
func (d *Driver) GetMetadataAllocated(r *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := text("snapshot_id", r.GetSnapshotId()); err != nil {
		return err
	}
	return d.ranges(stream.Context(), "", r.GetSnapshotId(), r, func(size int64, all []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: all})
	})
}

// GetMetadataDelta implements csi.SnapshotMetadataServer.
func (d *Driver) GetMetadataDelta(r *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := text("base_snapshot_id", r.GetBaseSnapshotId()); err != nil {
		return err
	}
	if err := text("target_snapshot_id", r.GetTargetSnapshotId()); err != nil {
		return err
	}
	return d.ranges(stream.Context(), r.GetBaseSnapshotId(), r.GetTargetSnapshotId(), r, func(size int64, all []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: all})
	})
}

// paged is what both requests say of the answer.
type paged interface {
	GetStartingOffset() int64
	GetMaxResults() int32
}

// ranges sends what there is in messages of bounded size; one without ranges if there are none, so that the size is
// known.
func (d *Driver) ranges(ctx context.Context, base, target string, p paged, send func(size int64, all []*csi.BlockMetadata) error) error {
	if p.GetMaxResults() < 0 {
		return errs.InvalidArgument.Errorf("max_results: %d", p.GetMaxResults())
	}
	most := mostRanges
	if n := int(p.GetMaxResults()); n > 0 {
		most = min(most, n)
	}
	all, size, err := d.m.Changed(ctx, base, target, p.GetStartingOffset())
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return send(size, nil)
	}
	for part := range slices.Chunk(all, most) {
		if err := send(size, blocks(part)); err != nil {
			return err
		}
	}
	return nil
}

func blocks(all []volume.Range) []*csi.BlockMetadata {
	out := make([]*csi.BlockMetadata, len(all))
	for i, r := range all {
		out[i] = &csi.BlockMetadata{ByteOffset: r.At, SizeBytes: r.Length}
	}
	return out
}
