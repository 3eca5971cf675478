package test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// receive gathers a stream of ranges, whose order and size it checks.
func receive(t *testing.T, size int64, most int, next func() (*csi.GetMetadataDeltaResponse, error)) (all []*csi.BlockMetadata, err error) {
	t.Helper()
	for end := int64(0); ; {
		r, err := next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if r.GetVolumeCapacityBytes() != size || len(r.GetBlockMetadata()) > most || r.GetBlockMetadataType() != csi.BlockMetadataType_VARIABLE_LENGTH {
			t.Errorf("a message of %d ranges of %d bytes", len(r.GetBlockMetadata()), r.GetVolumeCapacityBytes())
		}
		for _, b := range r.GetBlockMetadata() {
			if b.GetByteOffset() < end || b.GetSizeBytes() <= 0 || b.GetByteOffset()+b.GetSizeBytes() > size {
				t.Errorf("range %v after %d", b, end)
			}
			end = b.GetByteOffset() + b.GetSizeBytes()
		}
		all = append(all, r.GetBlockMetadata()...)
	}
}

func (l *lab) allocated(r *csi.GetMetadataAllocatedRequest, size int64, most int) ([]*csi.BlockMetadata, error) {
	s, err := l.GetMetadataAllocated(l.ctx(), r)
	l.ok(err)
	return receive(l.t, size, most, func() (*csi.GetMetadataDeltaResponse, error) {
		m, err := s.Recv()
		return &csi.GetMetadataDeltaResponse{BlockMetadataType: m.GetBlockMetadataType(), VolumeCapacityBytes: m.GetVolumeCapacityBytes(), BlockMetadata: m.GetBlockMetadata()}, err
	})
}

func (l *lab) delta(base, target string, from, size int64) ([]*csi.BlockMetadata, error) {
	s, err := l.GetMetadataDelta(context.Background(), &csi.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: target, StartingOffset: from, MaxResults: 3})
	l.ok(err)
	return receive(l.t, size, 3, s.Recv)
}

// TestChangedBlocks: a backup made of the first snapshot's allocated ranges, and then of what changed to the second, has
// the second's bytes; and no more was said to have changed than was written.
func TestChangedBlocks(t *testing.T) {
	l := newLab(t, kinds()[1], 600*mib, "")
	const size = 64 * mib
	id := l.must("v", size, block())
	dev, err := os.OpenFile(l.up(id, block()), os.O_RDWR|unix.O_DIRECT, 0)
	l.ok(err)
	put := func(at int64, b byte) {
		page := alignedPage()
		copy(page, bytes.Repeat([]byte{b}, len(page)))
		_, err := dev.WriteAt(page, at)
		l.ok(err)
	}
	shoot := func(name string) string {
		l.ok(dev.Sync())
		r, err := l.CreateSnapshot(l.ctx(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: id})
		l.ok(err)
		return r.GetSnapshot().GetSnapshotId()
	}
	for i := range int64(10) {
		put(i*5*mib, 'a')
	}
	one := shoot("one")
	for i := range int64(4) {
		put(i*15*mib+4096, 'b')
	}
	put(0, 'c')
	two := shoot("two")
	l.ok(dev.Close())
	backup, image := make([]byte, size), func(snapshot string) []byte {
		b, err := os.ReadFile(l.poolDir() + "/snapshots/" + snapshot + ".img")
		l.ok(err)
		return b
	}
	restore := func(from []byte, all []*csi.BlockMetadata) (n int64) {
		for _, b := range all {
			copy(backup[b.GetByteOffset():b.GetByteOffset()+b.GetSizeBytes()], from[b.GetByteOffset():])
			n += b.GetSizeBytes()
		}
		return n
	}
	all, err := l.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: one, MaxResults: 4}, size, 4)
	l.ok(err)
	if n := restore(image(one), all); n > 2*mib || !bytes.Equal(backup, image(one)) {
		t.Errorf("%d bytes of ten pages are allocated; equal: %v", n, bytes.Equal(backup, image(one)))
	}
	all, err = l.delta(one, two, 0, size)
	l.ok(err)
	if n := restore(image(two), all); n > mib || !bytes.Equal(backup, image(two)) {
		t.Errorf("%d bytes of five pages have changed; equal: %v", n, bytes.Equal(backup, image(two)))
	}
	if part, err := l.delta(one, two, 20*mib, size); err != nil || len(part) == 0 || len(part) >= len(all) || part[0].GetByteOffset() < 20*mib {
		t.Errorf("from an offset on: %v, %v", part, err)
	}
	l.badRanges(id, one, size)
	l.down(id)
	for _, s := range []string{one, two} {
		_, err := l.DeleteSnapshot(l.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: s})
		l.ok(err)
	}
	l.ok(l.remove(id))
	l.empty()
}

// badRanges: requests that cannot be answered get the code of the spec.
func (l *lab) badRanges(id, snapshot string, size int64) {
	l.t.Helper()
	ask := func(r *csi.GetMetadataAllocatedRequest) error {
		_, err := l.allocated(r, size, 1024)
		return err
	}
	code(l.t, ask(&csi.GetMetadataAllocatedRequest{}), codes.InvalidArgument, "snapshot_id")
	code(l.t, ask(&csi.GetMetadataAllocatedRequest{SnapshotId: "s00000000000000000000000000000000"}), codes.NotFound, "")
	code(l.t, ask(&csi.GetMetadataAllocatedRequest{SnapshotId: id}), codes.NotFound, "")
	code(l.t, ask(&csi.GetMetadataAllocatedRequest{SnapshotId: snapshot, StartingOffset: size + 1}), codes.OutOfRange, "starting_offset")
	code(l.t, ask(&csi.GetMetadataAllocatedRequest{SnapshotId: snapshot, StartingOffset: -1}), codes.OutOfRange, "starting_offset")
	_, err := l.delta(snapshot, "s00000000000000000000000000000000", 0, size)
	code(l.t, err, codes.NotFound, "")
}
