package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/berth-project/berth/proto/errs"
)

// snapshotter makes and removes the snapshots of this node's volumes for VolumeSnapshotContents. The snapshot
// controller, one for the cluster, binds these to VolumeSnapshots; what csi-snapshotter does beside a driver is done
// here, by the same words, so that either may go on where the other stopped.
type snapshotter struct {
	*Loops
	objects cache.SharedIndexInformer
	queue   workqueue.TypedRateLimitingInterface[string]
}

// lookForAPI is how often a cluster without the snapshot API is asked whether it has one now.
const lookForAPI = 15 * time.Second

// snapshots runs the loop once the cluster has the snapshot API, until ctx ends.
func (l *Loops) snapshots(ctx context.Context) {
	for {
		_, err := l.client.Discovery().ServerResourcesForGroupVersion(contentsResource.GroupVersion().String())
		if err == nil {
			break
		}
		if !apierrors.IsNotFound(err) {
			l.conf.Log.Warn("asking for the snapshot API", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookForAPI):
		}
	}
	s := &snapshotter{
		Loops: l, queue: workqueue.NewTypedRateLimitingQueue(backoff()),
		objects: dynamicinformer.NewFilteredDynamicInformer(l.dynamic, contentsResource, "", 0, cache.Indexers{}, nil).Informer(),
	}
	if err := s.run(ctx); err != nil {
		l.conf.Log.Error("snapshots are not made any more", "error", err)
	}
}

func (s *snapshotter) run(ctx context.Context) error {
	add := func(o any) {
		if c, ok := o.(*unstructured.Unstructured); ok {
			s.queue.Add(c.GetName())
		}
	}
	if _, err := s.objects.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.objects.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), s.objects.HasSynced) {
		return nil
	}
	s.conf.Log.Info("watching for snapshots", "node", s.conf.Node)
	for range min(s.conf.Workers, 8) {
		wg.Go(func() {
			for s.one(ctx) {
			}
		})
	}
	<-ctx.Done()
	s.queue.ShutDown()
	return nil
}

func (s *snapshotter) one(ctx context.Context) bool {
	name, shutdown := s.queue.Get()
	if shutdown {
		return false
	}
	defer s.queue.Done(name)
	if err := s.sync(ctx, name); err != nil && ctx.Err() == nil {
		s.conf.Log.Warn("snapshot", "content", name, "error", err)
		s.queue.AddRateLimited(name)
	} else {
		s.queue.Forget(name)
	}
	return true
}

// sync does the next step about one content, if it is this node's; the change that it makes leads to the next.
func (s *snapshotter) sync(ctx context.Context, name string) error {
	o, found, err := s.objects.GetStore().GetByKey(name)
	if err != nil || !found {
		return err
	}
	c, err := decode[content](o.(*unstructured.Unstructured))
	if err != nil {
		return err
	}
	todo := next(c)
	if todo == nothing || c.Spec.Driver != s.conf.Name {
		return nil
	}
	if mine, err := s.holds(ctx, c); err != nil || !mine {
		return err
	}
	switch todo {
	case create:
		return s.create(ctx, c, o.(*unstructured.Unstructured))
	case look:
		return s.look(ctx, c)
	case unmark:
		return s.mark(ctx, c, map[string]any{beingCreated: nil})
	case remove:
		if _, err := s.driver.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: c.Status.SnapshotHandle}); err != nil {
			s.events.Eventf(o.(*unstructured.Unstructured), nil, corev1.EventTypeWarning, "SnapshotDeleteError", "Deleting", "%s: %v", errs.Of(err), err)
			return err
		}
		return s.release(ctx, c)
	case release:
		return s.release(ctx, c)
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
	handle := c.Spec.Source.SnapshotHandle
	if c.Status != nil && c.Status.SnapshotHandle != "" {
		handle = c.Status.SnapshotHandle
	}
	var err error
	if handle != "" {
		_, err = s.driver.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: handle})
	} else {
		_, err = s.driver.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: c.Spec.Source.VolumeHandle})
	}
	switch errs.Of(err) {
	case errs.NotFound, errs.InvalidArgument: // another node's, or a handle that nobody has
		return false, nil
	}
	return err == nil, err
}

// create makes the snapshot. That it is being made is written down first, so that the object is not let go before the
// answer is known.
func (s *snapshotter) create(ctx context.Context, c *content, o *unstructured.Unstructured) error {
	if _, marked := c.Annotations[beingCreated]; !marked {
		if err := s.mark(ctx, c, map[string]any{beingCreated: "yes", s.conf.TopologyKey: s.conf.Node}); err != nil {
			return err
		}
	}
	params, err := s.parameters(ctx, c, o)
	var resp *csi.CreateSnapshotResponse
	if err == nil {
		resp, err = s.driver.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
			Name: "snapshot-" + string(c.Spec.VolumeSnapshotRef.UID), SourceVolumeId: c.Spec.Source.VolumeHandle, Parameters: params,
		})
	}
	if err != nil {
		return errors.Join(err, s.failed(ctx, c, o, err))
	}
	if err := s.tell(ctx, c, resp.GetSnapshot()); err != nil {
		return err
	}
	return s.mark(ctx, c, map[string]any{beingCreated: nil})
}

// parameters are those of the class, without external-snapshotter's own, and who asks, for the operator's tables.
func (s *snapshotter) parameters(ctx context.Context, c *content, o *unstructured.Unstructured) (map[string]string, error) {
	params := map[string]string{}
	if class, _, err := unstructured.NestedString(o.Object, "spec", "volumeSnapshotClassName"); err != nil {
		return nil, err
	} else if class != "" {
		found, err := s.dynamic.Resource(classesResource).Get(ctx, class, metav1.GetOptions{})
		if err != nil {
			return nil, errs.Unavailable.Errorf("VolumeSnapshotClass %s: %w", class, err)
		}
		if params, _, err = unstructured.NestedStringMap(found.Object, "parameters"); err != nil {
			return nil, errs.InvalidArgument.Errorf("VolumeSnapshotClass %s: %w", class, err)
		}
	}
	out := map[string]string{
		"csi.storage.k8s.io/volumesnapshot/name":        c.Spec.VolumeSnapshotRef.Name,
		"csi.storage.k8s.io/volumesnapshot/namespace":   c.Spec.VolumeSnapshotRef.Namespace,
		"csi.storage.k8s.io/volumesnapshotcontent/name": c.Name,
	}
	for k, v := range params {
		if !strings.HasPrefix(k, "csi.storage.k8s.io/") {
			out[k] = v
		}
	}
	return out, nil
}

// failed writes down why a snapshot was not made, for who asked for it. After a final answer nothing is being made.
func (s *snapshotter) failed(ctx context.Context, c *content, o *unstructured.Unstructured, why error) error {
	message := fmt.Sprintf("%s: %v", errs.Of(why), why)
	s.events.Eventf(o, nil, corev1.EventTypeWarning, "SnapshotCreationFailed", "Creating", "%s", message)
	err := s.patch(ctx, c.Name, map[string]any{"status": map[string]any{
		"readyToUse": false, "error": snapshotError{Time: new(metav1.Now()), Message: message},
	}}, "status")
	if final(why) {
		err = errors.Join(err, s.mark(ctx, c, map[string]any{beingCreated: nil}))
	}
	return err
}

// look says what is known of a snapshot that the object was made for.
func (s *snapshotter) look(ctx context.Context, c *content) error {
	resp, err := s.driver.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: c.Spec.Source.SnapshotHandle})
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

// release takes the finalizer off. Somebody else's change in between is a conflict, and comes back.
func (s *snapshotter) release(ctx context.Context, c *content) error {
	left := slices.DeleteFunc(slices.Clone(c.Finalizers), func(f string) bool { return f == contentFinalizer })
	return s.patch(ctx, c.Name, map[string]any{"metadata": map[string]any{"finalizers": left, "resourceVersion": c.ResourceVersion}})
}

// mark sets annotations; nil takes one away.
func (s *snapshotter) mark(ctx context.Context, c *content, annotations map[string]any) error {
	return s.patch(ctx, c.Name, map[string]any{"metadata": map[string]any{"annotations": annotations}})
}

func (s *snapshotter) patch(ctx context.Context, name string, change map[string]any, subresource ...string) error {
	return s.merge(ctx, contentsResource, name, change, subresource...)
}

// merge changes a cluster-wide object of the snapshot API by a merge patch (RFC 7396); one that is gone is fine.
func (l *Loops) merge(ctx context.Context, kind schema.GroupVersionResource, name string, change map[string]any, subresource ...string) error {
	b, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = l.dynamic.Resource(kind).Patch(ctx, name, types.MergePatchType, b, metav1.PatchOptions{}, subresource...)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
