package cluster

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/berth-project/berth/proto/errs"
)

// snapshotter makes and removes the snapshots of this node's volumes for VolumeSnapshotContents. The snapshot
// controller, one for the cluster, binds these to VolumeSnapshots; what csi-snapshotter does beside a driver is done
// here, by the same words, so that either may go on where the other stopped.
type snapshotter struct{ *watch }

func newSnapshotter(l *Loops) *snapshotter {
	s := &snapshotter{&watch{
		Loops: l, kind: contentsResource, classes: classesResource, classField: "volumeSnapshotClassName",
		finalizer: contentFinalizer, creating: beingCreated,
	}}
	s.watch.sync = s.sync
	return s
}

// sync does the next step about one content, if it is this node's; the change that it makes leads to the next.
func (s *snapshotter) sync(ctx context.Context, o *unstructured.Unstructured) error {
	c, err := decode[content](o)
	if err != nil {
		return err
	}
	todo, marked := next(c), c.Annotations[s.conf.TopologyKey] != ""
	if todo == nothing && (marked || c.snapshot() == "" || c.DeletionTimestamp != nil) || c.Spec.Driver != s.conf.Name {
		return nil
	}
	if mine, err := s.holds(ctx, c); err != nil || !mine {
		return err
	}
	if !marked { // when it is to be let go, the snapshot of a group's member, which says whose it is, is gone already
		if err := s.mark(ctx, c.Name, map[string]any{s.conf.TopologyKey: s.conf.Node}); err != nil {
			return err
		}
	}
	switch todo {
	case create:
		return s.create(ctx, c, o)
	case look:
		return s.look(ctx, c)
	case unmark:
		return s.mark(ctx, c.Name, map[string]any{beingCreated: nil})
	case remove:
		if _, err := s.driver.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: c.Status.SnapshotHandle}); err != nil {
			s.events.Eventf(o, nil, corev1.EventTypeWarning, "SnapshotDeleteError", "Deleting", "%s: %v", errs.Of(err), err)
			return err
		}
		return s.release(ctx, &c.ObjectMeta)
	case release:
		return s.release(ctx, &c.ObjectMeta)
	}
	return nil
}

// holds says whether a content is of a volume or a snapshot of this node: by what was written on it, else by asking
// the driver, whose ids are those of one node alone.
func (s *snapshotter) holds(ctx context.Context, c *content) (bool, error) {
	for _, node := range []string{c.Annotations[s.conf.TopologyKey], c.Labels[managedBy]} {
		if node != "" {
			return node == s.conf.Node, nil
		}
	}
	if handle := c.snapshot(); handle != "" {
		_, err := s.driver.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: handle})
		return known(err)
	}
	return s.hasVolume(ctx, c.Spec.Source.VolumeHandle)
}

// hasVolume says whether a volume is on this node.
func (l *Loops) hasVolume(ctx context.Context, handle string) (bool, error) {
	_, err := l.driver.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: handle})
	return known(err)
}

// known turns the driver's answer into whether it has something: what it has not is another node's, or nobody's.
func known(err error) (bool, error) {
	switch errs.Of(err) {
	case errs.NotFound, errs.InvalidArgument:
		return false, nil
	}
	return err == nil, err
}

// create makes the snapshot.
func (s *snapshotter) create(ctx context.Context, c *content, o *unstructured.Unstructured) error {
	if err := s.begin(ctx, &c.ObjectMeta); err != nil {
		return err
	}
	params, err := s.parameters(ctx, o, map[string]string{
		"csi.storage.k8s.io/volumesnapshot/name":        c.Spec.VolumeSnapshotRef.Name,
		"csi.storage.k8s.io/volumesnapshot/namespace":   c.Spec.VolumeSnapshotRef.Namespace,
		"csi.storage.k8s.io/volumesnapshotcontent/name": c.Name,
	})
	if err != nil {
		return s.failed(ctx, o, err)
	}
	resp, err := s.driver.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
		Name: "snapshot-" + string(c.Spec.VolumeSnapshotRef.UID), SourceVolumeId: c.Spec.Source.VolumeHandle, Parameters: params,
	})
	if err != nil {
		return s.failed(ctx, o, err)
	}
	if err := s.tell(ctx, c, resp.GetSnapshot()); err != nil {
		return err
	}
	return s.mark(ctx, c.Name, map[string]any{beingCreated: nil})
}

// look says what is known of a snapshot that the object was made for.
func (s *snapshotter) look(ctx context.Context, c *content) error {
	resp, err := s.driver.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: c.snapshot()})
	if err != nil {
		return err
	}
	return s.tell(ctx, c, resp.GetSnapshot())
}

// tell writes a snapshot into its object's status.
func (s *snapshotter) tell(ctx context.Context, c *content, snap *csi.Snapshot) error {
	status := map[string]any{
		"snapshotHandle": snap.GetSnapshotId(), "creationTime": snap.GetCreationTime().AsTime().UnixNano(),
		"restoreSize": snap.GetSizeBytes(), "readyToUse": snap.GetReadyToUse(), "error": nil,
	}
	if g := snap.GetGroupSnapshotId(); g != "" {
		status["volumeGroupSnapshotHandle"] = g
	}
	return s.patch(ctx, c.Name, map[string]any{"status": status}, "status")
}
