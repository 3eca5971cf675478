package csi

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestChangedBlocks: a pod writes to a raw block volume between two VolumeSnapshots; the driver's SnapshotMetadata
// service, asked as external-snapshot-metadata's sidecar asks it, by the handles that the snapshots' contents have, names
// the blocks that were written and no other.
func TestChangedBlocks(t *testing.T) {
	x := begin(t, "changed")
	s, block := set("db", "xfs", "64Mi"), corev1.PersistentVolumeBlock
	s.Spec.VolumeClaimTemplates[0].Spec.VolumeMode = &block
	c := &s.Spec.Template.Spec.Containers[0]
	c.VolumeMounts, c.VolumeDevices = nil, []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
	x.run(s)
	x.podReady("db-0")
	put := func(blocks ...int64) {
		for _, b := range blocks {
			out, err := x.sh("db-0", fmt.Sprintf("dd if=/dev/urandom of=/dev/data bs=4096 count=1 seek=%d conv=notrunc,fsync", b))
			if err != nil {
				t.Fatalf("block %d: %v: %s", b, err, out)
			}
		}
	}
	put(0, 100, 2000, 9000)
	x.snapshot("one", "data-db-0")
	put(100, 101, 5000, 9000)
	x.snapshot("two", "data-db-0")
	conn, err := grpc.NewClient("unix://"+socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	x.ok(err)
	defer conn.Close() //nolint:errcheck // nothing is in flight
	m := csi.NewSnapshotMetadataClient(conn)
	all, err := m.GetMetadataAllocated(x.ctx, &csi.GetMetadataAllocatedRequest{SnapshotId: x.handle("one")})
	x.ok(err)
	if got := blocks(t, func() ([]*csi.BlockMetadata, error) { r, err := all.Recv(); return r.GetBlockMetadata(), err }); !slices.Equal(got, []int64{0, 100, 2000, 9000}) {
		t.Errorf("allocated: blocks %v", got)
	}
	delta, err := m.GetMetadataDelta(x.ctx, &csi.GetMetadataDeltaRequest{BaseSnapshotId: x.handle("one"), TargetSnapshotId: x.handle("two"), MaxResults: 2})
	x.ok(err)
	if got := blocks(t, func() ([]*csi.BlockMetadata, error) { r, err := delta.Recv(); return r.GetBlockMetadata(), err }); !slices.Equal(got, []int64{100, 101, 5000, 9000}) {
		t.Errorf("changed: blocks %v", got)
	}
	x.unsnapshots("one", "two")
	x.clean()
}

// handle is what the driver calls a VolumeSnapshot.
func (x *test) handle(name string) string {
	x.Helper()
	c, err := untyped()
	x.ok(err)
	o, err := c.Resource(snapshotAPI("volumesnapshots")).Namespace(x.ns).Get(x.ctx, name, metav1.GetOptions{})
	x.ok(err)
	content, _, err := unstructured.NestedString(o.Object, "status", "boundVolumeSnapshotContentName")
	x.ok(err)
	o, err = c.Resource(snapshotAPI("volumesnapshotcontents")).Get(x.ctx, content, metav1.GetOptions{})
	x.ok(err)
	handle, found, err := unstructured.NestedString(o.Object, "status", "snapshotHandle")
	if !found || err != nil {
		x.Fatalf("content %s of snapshot %s has no handle: %v", content, name, err)
	}
	return handle
}

// blocks are the numbers of the blocks of 4 KiB in a stream of ranges.
func blocks(t *testing.T, next func() ([]*csi.BlockMetadata, error)) (all []int64) {
	t.Helper()
	for {
		ranges, err := next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range ranges {
			for at := r.GetByteOffset(); at < r.GetByteOffset()+r.GetSizeBytes(); at += 4096 {
				all = append(all, at/4096)
			}
		}
	}
}
