package gone

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var contentsResource = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}

// contentFinalizer keeps a snapshot's object until the snapshot is removed.
const contentFinalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"

// contents are the driver's VolumeSnapshotContents. A cluster without snapshots has none.
func (c *Collector) contents(ctx context.Context) ([]unstructured.Unstructured, error) {
	list, err := c.dynamic.Resource(contentsResource).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(o unstructured.Unstructured) bool {
		driver, _, err := unstructured.NestedString(o.Object, "spec", "driver")
		return err != nil || driver != c.conf.Driver
	}), nil
}

// handleContent lets a snapshot's object go that was deleted and waits for the node to remove the snapshot. The node is written on
// it by the node's own loop.
func (c *Collector) handleContent(ctx context.Context, o *unstructured.Unstructured, since time.Time) error {
	deleted := o.GetDeletionTimestamp() != nil
	todo := tell
	if deleted && c.conf.Policy != Report {
		todo = forget
	}
	c.conf.Log.Warn("a snapshot's node is gone", "content", o.GetName(), "node", o.GetAnnotations()[c.conf.TopologyKey], "since", since, "deleted", deleted, "step", string(todo))
	if todo != forget {
		return nil
	}
	change, found := without(o, contentFinalizer)
	if !found {
		return nil // others keep it, for reasons of theirs
	}
	_, err := c.dynamic.Resource(contentsResource).Patch(ctx, o.GetName(), types.MergePatchType, change, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// without is the patch of an object, as it is now, that takes a finalizer away, and whether it has it.
func without(o metav1.Object, finalizer string) (patch []byte, found bool) {
	left := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer })
	if len(left) == len(o.GetFinalizers()) {
		return nil, false
	}
	patch = fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q,"finalizers":[`, o.GetResourceVersion())
	for i, f := range left {
		if i > 0 {
			patch = append(patch, ',')
		}
		patch = fmt.Appendf(patch, "%q", f)
	}
	return append(patch, "]}}"...), true
}
