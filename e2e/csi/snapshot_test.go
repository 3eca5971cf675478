package csi

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// snapshot makes a VolumeSnapshot of a claim and waits until it can be used.
func (x *test) snapshot(name, claim string) {
	x.Helper()
	x.ok(apply(x.ctx, fmt.Sprintf("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: %s, namespace: %s}\n"+
		"spec: {volumeSnapshotClassName: berth-local, source: {persistentVolumeClaimName: %s}}\n", name, x.ns, claim)))
	c, err := untyped()
	x.ok(err)
	x.await("snapshot "+name+" to be ready", func() error {
		o, err := c.Resource(snapshotAPI("volumesnapshots")).Namespace(x.ns).Get(x.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if ready, _, err := unstructured.NestedBool(o.Object, "status", "readyToUse"); err != nil || !ready {
			return fmt.Errorf("%v: %s, %w", o.Object["status"], x.events(), err)
		}
		return nil
	})
}

// unsnapshot deletes a VolumeSnapshot and waits until its content is gone too.
func (x *test) unsnapshot(name string) {
	x.Helper()
	c, err := untyped()
	x.ok(err)
	x.ok(c.Resource(snapshotAPI("volumesnapshots")).Namespace(x.ns).Delete(x.ctx, name, metav1.DeleteOptions{}))
	x.await("snapshot "+name+" to be gone", func() error {
		_, err := c.Resource(snapshotAPI("volumesnapshots")).Namespace(x.ns).Get(x.ctx, name, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		list, err := c.Resource(snapshotAPI("volumesnapshotcontents")).List(x.ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%d contents are left: %w", len(list.Items), err)
		}
		return nil
	})
}
