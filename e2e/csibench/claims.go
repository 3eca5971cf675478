package csibench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-project/berth/e2e/harness"
)

// prepare tells the cluster of a node and the drivers on it, as a kubelet would, and makes a class for each pool.
func prepare(ctx context.Context, c kubernetes.Interface, node string) error {
	_, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{
		driver + "/node": node, noop + "/node": node,
	}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	csiNode := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: node}}
	for _, name := range []string{driver, noop} {
		csiNode.Spec.Drivers = append(csiNode.Spec.Drivers, storagev1.CSINodeDriver{Name: name, NodeID: node, TopologyKeys: []string{name + "/node"}})
	}
	if _, err := c.StorageV1().CSINodes().Create(ctx, csiNode, metav1.CreateOptions{}); err != nil {
		return err
	}
	mode, policy := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete
	for name, params := range map[string]map[string]string{
		"btrfs": {"pool": "btrfs"}, "loop": {"pool": "loop", "csi.storage.k8s.io/fstype": "ext4"}, "noop": {},
	} {
		class := &storagev1.StorageClass{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: driver, Parameters: params, VolumeBindingMode: &mode, ReclaimPolicy: &policy,
		}
		if name == "noop" {
			class.Provisioner = noop
		}
		if _, err := c.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// burst makes n claims that the scheduler would have placed on the node, 16 at a time, and returns how many were bound
// per second, from the first request to the last claim. Then it calls bound, and deletes all.
func burst(ctx context.Context, c kubernetes.Interface, node, class string, n int, bound func() error) (float64, error) {
	api := c.CoreV1().PersistentVolumeClaims("default")
	start := time.Now()
	var wg sync.WaitGroup
	failed := make(chan error, n)
	slots := make(chan struct{}, 16)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_, err := api.Create(ctx, &corev1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", class, i), Annotations: map[string]string{"volume.kubernetes.io/selected-node": node}},
				Spec: corev1.PersistentVolumeClaimSpec{
					StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	err := harness.Until(ctx, 20*time.Millisecond, nil, func() error {
		list, err := api.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		done := 0
		for i := range list.Items {
			if list.Items[i].Status.Phase == corev1.ClaimBound {
				done++
			}
		}
		if done < n {
			return fmt.Errorf("%d of %d claims of class %s are bound", done, n, class)
		}
		return nil
	})
	rate := float64(n) / time.Since(start).Seconds()
	if err = errors.Join(err, bound()); err != nil {
		return 0, err
	}
	if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return 0, err
	}
	return rate, harness.Until(ctx, 50*time.Millisecond, nil, func() error {
		list, err := c.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d volumes are left", len(list.Items))
		}
		return err
	})
}
