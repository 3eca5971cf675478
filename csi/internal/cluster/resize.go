package cluster

import (
	"context"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/berth-project/berth/proto/errs"
)

func (l *Loops) watchClaims(claims cache.SharedIndexInformer) error {
	again := func(o any) {
		l.maybeResize(o)
		l.maybeModify(o)
	}
	_, err := claims.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: again, UpdateFunc: func(_, now any) { again(now) }})
	return err
}

// maybeResize puts a bound claim that asks for more than it has into the queue.
func (l *Loops) maybeResize(o any) {
	c, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok || c.Status.Phase != corev1.ClaimBound || c.Spec.VolumeName == "" {
		return
	}
	want, have := c.Spec.Resources.Requests[corev1.ResourceStorage], c.Status.Capacity[corev1.ResourceStorage]
	if want.Cmp(have) > 0 {
		l.resizes.Add(c.Namespace + "/" + c.Name)
	}
}

// work does what is in a queue of claims, one at a time, until the queue is shut down.
func (l *Loops) work(ctx context.Context, what string, queue workqueue.TypedRateLimitingInterface[string], do func(context.Context, string) error) {
	for {
		key, shutdown := queue.Get()
		if shutdown {
			return
		}
		if err := do(ctx, key); err != nil && ctx.Err() == nil {
			l.conf.Log.Warn(what, "claim", key, "error", err)
			queue.AddRateLimited(key)
		} else {
			queue.Forget(key)
		}
		queue.Done(key)
	}
}

// resize expands the volume of one claim: the storage, then the PersistentVolume, then what the kubelet needs to know
// in the claim's status (KEP-1790, RecoverVolumeExpansionFailure).
func (l *Loops) resize(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	c, err := l.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	pv, err := l.client.CoreV1().PersistentVolumes().Get(ctx, c.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || !l.mine(pv) {
		return err
	}
	want, have := c.Spec.Resources.Requests[corev1.ResourceStorage], pv.Spec.Capacity[corev1.ResourceStorage]
	inStatus := c.Status.Capacity[corev1.ResourceStorage]
	if want.Cmp(inStatus) <= 0 || want.Cmp(have) <= 0 && c.Status.AllocatedResourceStatuses[corev1.ResourceStorage] == corev1.PersistentVolumeClaimNodeResizePending {
		return nil // done, or it is the kubelet's turn
	}
	resp, err := l.driver.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: pv.Spec.CSI.VolumeHandle, CapacityRange: &csi.CapacityRange{RequiredBytes: want.Value()},
	})
	if err != nil {
		l.events.Eventf(c, nil, corev1.EventTypeWarning, "VolumeResizeFailed", "Expanding", "%s: %v", errs.Of(err), err)
		return err
	}
	got := *resource.NewQuantity(resp.GetCapacityBytes(), resource.BinarySI)
	pv.Spec.Capacity[corev1.ResourceStorage] = got
	if _, err := l.client.CoreV1().PersistentVolumes().Update(ctx, pv, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("persistent volume %s: %w", pv.Name, err)
	}
	return l.tell(ctx, c, got, resp.GetNodeExpansionRequired())
}

// tell writes into a claim's status that its volume has grown, or that the kubelet must grow the file system.
func (l *Loops) tell(ctx context.Context, c *corev1.PersistentVolumeClaim, size resource.Quantity, nodeGrows bool) error {
	s := &c.Status
	if s.AllocatedResources == nil {
		s.AllocatedResources = corev1.ResourceList{}
	}
	s.AllocatedResources[corev1.ResourceStorage] = size
	// Of the conditions only those of an expansion are ours.
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimFileSystemResizePending || c.Type == corev1.PersistentVolumeClaimResizing
	})
	if nodeGrows {
		s.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: corev1.PersistentVolumeClaimNodeResizePending}
		s.Conditions = append(s.Conditions, corev1.PersistentVolumeClaimCondition{
			Type: corev1.PersistentVolumeClaimFileSystemResizePending, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
			Message: "Waiting for the kubelet to grow the file system.",
		})
	} else {
		s.Capacity[corev1.ResourceStorage] = size
		s.AllocatedResourceStatuses = nil
	}
	_, err := l.client.CoreV1().PersistentVolumeClaims(c.Namespace).UpdateStatus(ctx, c, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("status of claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	l.events.Eventf(c, nil, corev1.EventTypeNormal, "VolumeResizeSuccessful", "Expanding", "the volume has %s", size.String())
	return nil
}
