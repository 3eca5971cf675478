package cluster

import (
	"context"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-project/berth/proto/errs"
)

// The words of external-snapshotter for groups; see those for snapshots.
const (
	groupFinalizer    = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"
	groupBeingCreated = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created"
	groupBeingDeleted = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"
)

// groupContent is a VolumeGroupSnapshotContent.
type groupContent struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Driver                 string                 `json:"driver"`
		DeletionPolicy         string                 `json:"deletionPolicy"`
		VolumeGroupSnapshotRef corev1.ObjectReference `json:"volumeGroupSnapshotRef"`
		Source                 struct {
			VolumeHandles []string `json:"volumeHandles"` // of a group to be made
		} `json:"source"`
	} `json:"spec"`
	Status *struct {
		VolumeGroupSnapshotHandle string       `json:"volumeGroupSnapshotHandle"`
		ReadyToUse                bool         `json:"readyToUse"`
		Members                   []memberInfo `json:"volumeSnapshotInfoList"`
	} `json:"status"`
}

// memberInfo is what the snapshot controller makes a member's own objects of.
type memberInfo struct {
	VolumeHandle   string `json:"volumeHandle"`
	SnapshotHandle string `json:"snapshotHandle"`
	CreationTime   int64  `json:"creationTime"` // nanoseconds since 1970
	ReadyToUse     bool   `json:"readyToUse"`
	RestoreSize    int64  `json:"restoreSize"` // bytes
}

// grouper makes and removes groups of snapshots for VolumeGroupSnapshotContents, as snapshotter does single ones.
type grouper struct{ *watch }

func newGrouper(l *Loops) *grouper {
	resource := func(name string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: groupGroup, Version: "v1", Resource: name}
	}
	g := &grouper{&watch{
		Loops: l, kind: resource("volumegroupsnapshotcontents"), classes: resource("volumegroupsnapshotclasses"),
		classField: "volumeGroupSnapshotClassName", finalizer: groupFinalizer, creating: groupBeingCreated,
	}}
	g.watch.sync = g.sync
	return g
}

// nextOfGroup decides, purely. A group that somebody else has made is only let go.
func nextOfGroup(c *groupContent) step {
	_, creating := c.Annotations[groupBeingCreated]
	_, deleted := c.Annotations[groupBeingDeleted]
	made := c.Status != nil && c.Status.VolumeGroupSnapshotHandle != ""
	dynamic := len(c.Spec.Source.VolumeHandles) > 0
	switch {
	case c.DeletionTimestamp == nil && made && c.Status.ReadyToUse && creating:
		return unmark
	case c.DeletionTimestamp == nil && !made && dynamic:
		return create
	case c.DeletionTimestamp == nil, !slices.Contains(c.Finalizers, groupFinalizer), !deleted:
		return nothing
	case c.Spec.DeletionPolicy != "Delete":
		return release
	case made:
		return remove
	case creating && dynamic:
		return create // nobody knows whether it was made
	}
	return release
}

func (g *grouper) sync(ctx context.Context, o *unstructured.Unstructured) error {
	c, err := decode[groupContent](o)
	if err != nil {
		return err
	}
	todo := nextOfGroup(c)
	if todo == nothing || c.Spec.Driver != g.conf.Name {
		return nil
	}
	if mine, err := g.holds(ctx, c); err != nil || !mine {
		return err
	}
	switch todo {
	case create:
		return g.create(ctx, c, o)
	case unmark:
		return g.mark(ctx, c.Name, map[string]any{groupBeingCreated: nil})
	case remove:
		return g.remove(ctx, c, o)
	case release:
		return g.release(ctx, &c.ObjectMeta)
	}
	return nil
}

// holds: a group is of one node; the first of its volumes says which.
func (g *grouper) holds(ctx context.Context, c *groupContent) (bool, error) {
	if node := c.Annotations[g.conf.TopologyKey]; node != "" {
		return node == g.conf.Node, nil
	}
	if len(c.Spec.Source.VolumeHandles) == 0 {
		return false, nil
	}
	return g.hasVolume(ctx, c.Spec.Source.VolumeHandles[0])
}

func (g *grouper) create(ctx context.Context, c *groupContent, o *unstructured.Unstructured) error {
	if err := g.begin(ctx, &c.ObjectMeta); err != nil {
		return err
	}
	params, err := g.parameters(ctx, o, map[string]string{
		"csi.storage.k8s.io/volumegroupsnapshot/name":        c.Spec.VolumeGroupSnapshotRef.Name,
		"csi.storage.k8s.io/volumegroupsnapshot/namespace":   c.Spec.VolumeGroupSnapshotRef.Namespace,
		"csi.storage.k8s.io/volumegroupsnapshotcontent/name": c.Name,
	})
	if err != nil {
		return g.failed(ctx, o, err)
	}
	resp, err := g.driver.CreateVolumeGroupSnapshot(ctx, &csi.CreateVolumeGroupSnapshotRequest{
		Name: "groupsnapshot-" + string(c.Spec.VolumeGroupSnapshotRef.UID), SourceVolumeIds: c.Spec.Source.VolumeHandles, Parameters: params,
	})
	if err != nil {
		return g.failed(ctx, o, err)
	}
	var members []memberInfo
	for _, s := range resp.GetGroupSnapshot().GetSnapshots() {
		members = append(members, memberInfo{
			VolumeHandle: s.GetSourceVolumeId(), SnapshotHandle: s.GetSnapshotId(), CreationTime: s.GetCreationTime().AsTime().UnixNano(),
			ReadyToUse: s.GetReadyToUse(), RestoreSize: s.GetSizeBytes(),
		})
	}
	made := resp.GetGroupSnapshot()
	err = g.patch(ctx, c.Name, map[string]any{"status": map[string]any{
		"volumeGroupSnapshotHandle": made.GetGroupSnapshotId(), "creationTime": made.GetCreationTime().AsTime().UTC().Format(time.RFC3339),
		"readyToUse": made.GetReadyToUse(), "volumeSnapshotInfoList": members, "error": nil,
	}}, "status")
	if err != nil {
		return err
	}
	return g.mark(ctx, c.Name, map[string]any{groupBeingCreated: nil})
}

func (g *grouper) remove(ctx context.Context, c *groupContent, o *unstructured.Unstructured) error {
	var ids []string
	for _, m := range c.Status.Members {
		ids = append(ids, m.SnapshotHandle)
	}
	_, err := g.driver.DeleteVolumeGroupSnapshot(ctx, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: c.Status.VolumeGroupSnapshotHandle, SnapshotIds: ids})
	if err != nil {
		g.events.Eventf(o, nil, corev1.EventTypeWarning, "GroupSnapshotDeleteError", "Deleting", "%s: %v", errs.Of(err), err)
		return err
	}
	return g.release(ctx, &c.ObjectMeta)
}
