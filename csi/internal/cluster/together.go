package cluster

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-project/berth/proto/errs"
)

// together refuses a claim with RESOURCE_EXHAUSTED if the claims of its pod that have no volume yet do not fit together.
// The API server is asked for pods only where those claims of the namespace that wait do not all fit anyway.
func (l *Loops) together(ctx context.Context, c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	self := l.want(c, class)
	waiting, err := l.waiting(self, c.Namespace)
	if err != nil {
		return err
	}
	if len(waiting) == 0 {
		return l.room.let([]want{self}, self.bytes, time.Now())
	}
	resp, err := l.driver.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: maps.Clone(class.Parameters)})
	if err != nil {
		return err
	}
	free := resp.GetAvailableCapacity()
	if l.room.all(append(waiting, self), free) {
		return l.room.let([]want{self}, self.bytes, time.Now())
	}
	mates, err := l.mates(ctx, c, waiting)
	if err != nil {
		return err
	}
	return l.room.let(append(mates, self), free, time.Now())
}

func (l *Loops) want(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) want {
	size := c.Spec.Resources.Requests[corev1.ResourceStorage]
	return want{uid: c.UID, name: c.Name, class: class.Name, pool: class.Parameters["pool"], bytes: size.Value()}
}

// waiting are the other claims of a namespace that have no volume and want one of the same pool.
func (l *Loops) waiting(self want, namespace string) (all []want, err error) {
	claims, err := l.objects.Core().V1().PersistentVolumeClaims().Lister().PersistentVolumeClaims(namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	for _, c := range claims {
		if c.UID == self.uid || c.Spec.VolumeName != "" || c.DeletionTimestamp != nil || c.Spec.StorageClassName == nil {
			continue
		}
		class, err := l.objects.Storage().V1().StorageClasses().Lister().Get(*c.Spec.StorageClassName)
		if err != nil || class.Provisioner != l.conf.Name || class.Parameters["pool"] != self.pool {
			continue // none of ours
		}
		all = append(all, l.want(c, class))
	}
	return all, nil
}

// mates are those of the given claims that a pod, which is not placed yet, uses together with a claim.
func (l *Loops) mates(ctx context.Context, c *corev1.PersistentVolumeClaim, all []want) ([]want, error) {
	pods, err := l.client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=", ResourceVersion: "0"})
	if err != nil {
		return nil, errs.Unavailable.Errorf("which pods use claim %s: %w", c.Name, err)
	}
	var mates []want
	for i := range pods.Items {
		names := claimsOf(&pods.Items[i])
		if !slices.Contains(names, c.Name) {
			continue
		}
		for _, w := range all {
			if slices.Contains(names, w.name) && !slices.Contains(mates, w) {
				mates = append(mates, w)
			}
		}
	}
	return mates, nil
}

// claimsOf are the names of a pod's claims, those of its generic ephemeral volumes too.
func claimsOf(pod *corev1.Pod) (names []string) {
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, pod.Name+"-"+v.Name)
		}
	}
	return names
}
