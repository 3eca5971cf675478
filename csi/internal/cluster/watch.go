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

// watch is a queue of the objects of one kind of the snapshot API, which are the cluster's and in no namespace, and how
// they are changed.
type watch struct {
	*Loops
	kind, classes schema.GroupVersionResource
	classField    string // of spec: the class's name
	finalizer     string // what keeps an object until its snapshot is gone
	creating      string // the mark that its snapshot is being made
	sync          func(context.Context, *unstructured.Unstructured) error

	objects cache.SharedIndexInformer
	queue   workqueue.TypedRateLimitingInterface[string]
}

// lookForAPI is how often a cluster without the snapshot API is asked whether it has one now.
const lookForAPI = 15 * time.Second

// snapshots runs the loops for snapshots and for groups of them once the cluster has their API, until ctx ends.
func (l *Loops) snapshots(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, w := range []*watch{newSnapshotter(l).watch, newGrouper(l).watch} {
		wg.Go(func() {
			if err := w.run(ctx); err != nil {
				l.conf.Log.Error("snapshots are not made any more", "kind", w.kind.Resource, "error", err)
			}
		})
	}
}

// exists waits until the cluster has the kind.
func (w *watch) exists(ctx context.Context) bool {
	for {
		list, err := w.client.Discovery().ServerResourcesForGroupVersion(w.kind.GroupVersion().String())
		if err == nil && slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == w.kind.Resource }) {
			return true
		}
		if err != nil && !apierrors.IsNotFound(err) {
			w.conf.Log.Warn("asking for the snapshot API", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(lookForAPI):
		}
	}
}

func (w *watch) run(ctx context.Context) error {
	if !w.exists(ctx) {
		return nil
	}
	w.queue = workqueue.NewTypedRateLimitingQueue(backoff())
	w.objects = dynamicinformer.NewFilteredDynamicInformer(w.dynamic, w.kind, "", 0, cache.Indexers{}, nil).Informer()
	add := func(o any) {
		if c, ok := o.(*unstructured.Unstructured); ok {
			w.queue.Add(c.GetName())
		}
	}
	if _, err := w.objects.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { w.objects.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), w.objects.HasSynced) {
		return nil
	}
	w.conf.Log.Info("watching for snapshots", "kind", w.kind.Resource, "node", w.conf.Node)
	for range min(w.conf.Workers, 8) {
		wg.Go(func() {
			for w.one(ctx) {
			}
		})
	}
	<-ctx.Done()
	w.queue.ShutDown()
	return nil
}

func (w *watch) one(ctx context.Context) bool {
	name, shutdown := w.queue.Get()
	if shutdown {
		return false
	}
	defer w.queue.Done(name)
	o, found, err := w.objects.GetStore().GetByKey(name)
	if err == nil && found {
		err = w.sync(ctx, o.(*unstructured.Unstructured))
	}
	if err != nil && ctx.Err() == nil {
		w.conf.Log.Warn("snapshot", "kind", w.kind.Resource, "name", name, "error", err)
		w.queue.AddRateLimited(name)
	} else {
		w.queue.Forget(name)
	}
	return true
}

// begin writes down that a snapshot is being made, so that its object is not let go before the answer is known, and
// whose it is.
func (w *watch) begin(ctx context.Context, o *metav1.ObjectMeta) error {
	if _, marked := o.Annotations[w.creating]; marked {
		return nil
	}
	return w.mark(ctx, o.Name, map[string]any{w.creating: "yes", w.conf.TopologyKey: w.conf.Node})
}

// failed writes down why a snapshot was not made, for who asked for it. After a final answer nothing is being made.
func (w *watch) failed(ctx context.Context, o *unstructured.Unstructured, why error) error {
	message := fmt.Sprintf("%s: %v", errs.Of(why), why)
	w.events.Eventf(o, nil, corev1.EventTypeWarning, "SnapshotCreationFailed", "Creating", "%s", message)
	err := w.patch(ctx, o.GetName(), map[string]any{"status": map[string]any{
		"readyToUse": false, "error": snapshotError{Time: new(metav1.Now()), Message: message},
	}}, "status")
	if final(why) {
		err = errors.Join(err, w.mark(ctx, o.GetName(), map[string]any{w.creating: nil}))
	}
	return errors.Join(why, err)
}

// parameters are those of the object's class, without external-snapshotter's own, and more.
func (w *watch) parameters(ctx context.Context, o *unstructured.Unstructured, more map[string]string) (map[string]string, error) {
	class, _, err := unstructured.NestedString(o.Object, "spec", w.classField)
	if err != nil || class == "" {
		return more, err
	}
	found, err := w.dynamic.Resource(w.classes).Get(ctx, class, metav1.GetOptions{})
	if err != nil {
		return nil, errs.Unavailable.Errorf("%s %s: %w", w.classes.Resource, class, err)
	}
	params, _, err := unstructured.NestedStringMap(found.Object, "parameters")
	if err != nil {
		return nil, errs.InvalidArgument.Errorf("%s %s: %w", w.classes.Resource, class, err)
	}
	for k, v := range params {
		if !strings.HasPrefix(k, "csi.storage.k8s.io/") {
			more[k] = v
		}
	}
	return more, nil
}

// release takes the finalizer off. Somebody else's change in between is a conflict, and comes back.
func (w *watch) release(ctx context.Context, o *metav1.ObjectMeta) error {
	left := slices.DeleteFunc(slices.Clone(o.Finalizers), func(f string) bool { return f == w.finalizer })
	return w.patch(ctx, o.Name, map[string]any{"metadata": map[string]any{"finalizers": left, "resourceVersion": o.ResourceVersion}})
}

// mark sets annotations; nil takes one away.
func (w *watch) mark(ctx context.Context, name string, annotations map[string]any) error {
	return w.patch(ctx, name, map[string]any{"metadata": map[string]any{"annotations": annotations}})
}

// patch changes an object by a merge patch (RFC 7396); one that is gone is fine.
func (w *watch) patch(ctx context.Context, name string, change map[string]any, subresource ...string) error {
	b, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = w.dynamic.Resource(w.kind).Patch(ctx, name, types.MergePatchType, b, metav1.PatchOptions{}, subresource...)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
