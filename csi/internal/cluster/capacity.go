package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-project/berth/proto/errs"
)

// Changes are gathered until there was none for settle, but no longer than atMost: a burst of claims is an update a
// second, a single one is known at once. Until the scheduler knows, the driver's ledger refuses what does not fit.
const (
	settle = 100 * time.Millisecond
	atMost = time.Second
)

func (l *Loops) watchClasses(classes cache.SharedIndexInformer) error {
	again := func(any) { l.Changed("") }
	_, err := classes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: again, UpdateFunc: func(_, o any) { again(o) }, DeleteFunc: again,
	})
	return err
}

// capacityLoop publishes after every change, and once a minute because others use the disk too.
func (l *Loops) capacityLoop(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if err := l.publish(ctx); err != nil && ctx.Err() == nil {
			l.conf.Log.Warn("publishing capacity", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.look()
			l.orphans(ctx)
		case <-l.changed:
		case <-l.room.again(time.Now()):
		}
		if !l.gather(ctx) {
			return
		}
	}
}

// gather waits until changes have settled; false: ctx has ended.
func (l *Loops) gather(ctx context.Context) bool {
	enough := time.After(atMost)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-enough:
			return true
		case <-time.After(settle):
			return true
		case <-l.changed:
		}
	}
}

// managed labels what is ours, so that what is no more needed is found.
func (l *Loops) managed() map[string]string {
	return map[string]string{"app.kubernetes.io/managed-by": "berth-csi", "berth.dev/driver": l.conf.Name, "berth.dev/node": l.conf.Node}
}

// publish makes one CSIStorageCapacity per class, owned by the Node, and removes those of classes that are gone. What is
// there is asked for only at first, after a failure and once a minute: nobody else writes them.
func (l *Loops) publish(ctx context.Context) error {
	l.offering.Lock()
	defer l.offering.Unlock()
	known := l.offered != nil
	failed := l.offer(ctx)
	if failed != nil && known && ctx.Err() == nil { // somebody wrote them after all, or they went with their Node
		l.offered = nil
		failed = l.offer(ctx)
	}
	if failed != nil {
		l.offered = nil
	}
	return failed
}

// look forgets what is published, so that the next publication asks for it.
func (l *Loops) look() {
	l.offering.Lock()
	defer l.offering.Unlock()
	l.offered = nil
}

func (l *Loops) offer(ctx context.Context) error {
	classes, err := l.objects.Storage().V1().StorageClasses().Lister().List(labels.Everything())
	if err != nil {
		return err
	}
	api := l.client.StorageV1().CSIStorageCapacities(l.conf.Namespace)
	if l.offered == nil {
		list, err := api.List(ctx, metav1.ListOptions{LabelSelector: labels.FormatLabels(l.managed())})
		if err != nil {
			return err
		}
		l.offered = map[string]*storagev1.CSIStorageCapacity{}
		for i := range list.Items {
			l.offered[list.Items[i].Name] = &list.Items[i]
		}
	}
	gone := maps.Clone(l.offered)
	var failed error
	for _, c := range classes {
		if c.Provisioner != l.conf.Name {
			continue
		}
		name := l.objectName(c.Name)
		delete(gone, name)
		if l.offered[name], err = l.publishClass(ctx, c, l.offered[name]); err != nil {
			failed = errors.Join(failed, fmt.Errorf("class %s: %w", c.Name, err))
		}
	}
	for name := range gone {
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			failed = errors.Join(failed, err)
		}
		delete(l.offered, name)
	}
	return failed
}

func (l *Loops) objectName(class string) string {
	sum := sha256.Sum256([]byte(l.conf.Name + "\x00" + l.conf.Node + "\x00" + class))
	return "berth-" + hex.EncodeToString(sum[:10])
}

// publishClass returns a class's object as it is now.
func (l *Loops) publishClass(ctx context.Context, c *storagev1.StorageClass, have *storagev1.CSIStorageCapacity) (*storagev1.CSIStorageCapacity, error) {
	params := maps.Clone(c.Parameters)
	resp, err := l.driver.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: params})
	if errs.Of(err) == errs.Unavailable { // a pool that is not there has no room
		resp, err = &csi.GetCapacityResponse{}, nil
	}
	if err != nil {
		return have, err
	}
	free := resource.NewQuantity(resp.GetAvailableCapacity(), resource.BinarySI)
	offer := l.room.offer(c.Name, resp.GetAvailableCapacity(), resp.GetMaximumVolumeSize().GetValue(), time.Now())
	most := resource.NewQuantity(offer, resource.BinarySI)
	api := l.client.StorageV1().CSIStorageCapacities(l.conf.Namespace)
	if have != nil {
		if have.Capacity.Cmp(*free) == 0 && have.MaximumVolumeSize != nil && have.MaximumVolumeSize.Cmp(*most) == 0 {
			return have, nil
		}
		have = have.DeepCopy()
		have.Capacity, have.MaximumVolumeSize = free, most
		return api.Update(ctx, have, metav1.UpdateOptions{})
	}
	node, err := l.client.CoreV1().Nodes().Get(ctx, l.conf.Node, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return api.Create(ctx, &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{
			Name: l.objectName(c.Name), Labels: l.managed(),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		},
		StorageClassName: c.Name, Capacity: free, MaximumVolumeSize: most,
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{l.conf.TopologyKey: l.conf.Node}},
	}, metav1.CreateOptions{})
}

// orphans reports volumes that have no PersistentVolume. They are reported and kept.
func (l *Loops) orphans(ctx context.Context) {
	ids, err := l.Unclaimed(ctx)
	if err != nil {
		l.conf.Log.Warn("looking for volumes without a PersistentVolume", "error", err)
	}
	for _, id := range ids {
		l.conf.Log.Warn("a volume has no PersistentVolume: delete it, or make one for it", "volume", id, "created", l.conf.Created(id))
	}
}

// Unclaimed are the volumes that are older than OrphanAfter and have no PersistentVolume: a provisioner that died between the two
// has left them, or somebody removed a finalizer. Unavailable: the API server has not answered yet.
func (l *Loops) Unclaimed(ctx context.Context) ([]string, error) {
	if !l.objects.Core().V1().PersistentVolumes().Informer().HasSynced() {
		return nil, errs.Unavailable.Errorf("the PersistentVolumes are not known yet: is the API server there?")
	}
	pvs, err := l.objects.Core().V1().PersistentVolumes().Lister().List(labels.Everything())
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, pv := range pvs {
		if pv.Spec.CSI != nil && pv.Spec.CSI.Driver == l.conf.Name {
			known[pv.Spec.CSI.VolumeHandle] = true
		}
	}
	list, err := l.driver.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range list.GetEntries() {
		id := e.GetVolume().GetVolumeId()
		if made := l.conf.Created(id); !known[id] && !made.IsZero() && time.Since(made) > l.conf.OrphanAfter {
			all = append(all, id)
		}
	}
	return all, nil
}
