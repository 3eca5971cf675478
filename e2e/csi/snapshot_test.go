package csi

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

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

// unsnapshots deletes all VolumeSnapshots that there are and waits until their contents are gone too.
func (x *test) unsnapshots(names ...string) {
	x.Helper()
	c, err := untyped()
	x.ok(err)
	api := c.Resource(snapshotAPI("volumesnapshots")).Namespace(x.ns)
	for _, name := range names {
		x.ok(api.Delete(x.ctx, name, metav1.DeleteOptions{}))
	}
	x.await("snapshots to be gone", func() error {
		for _, name := range names {
			if _, err := api.Get(x.ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s is there: %w", name, err)
			}
		}
		list, err := c.Resource(snapshotAPI("volumesnapshotcontents")).List(x.ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%d contents are left: %w", len(list.Items), err)
		}
		return nil
	})
}

// TestGroup: two volumes of a pod are snapshotted at one moment while it writes to both; each member is restored, and
// all goes with the group.
func TestGroup(t *testing.T) {
	x := begin(t, "group")
	s := set("pair", "xfs", "320Mi")
	s.Spec.VolumeClaimTemplates = append(s.Spec.VolumeClaimTemplates, claim("more", "xfs", "320Mi"))
	c := &s.Spec.Template.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "more", MountPath: "/more"})
	// A number goes to one volume and then to the other: at no moment is the second ahead of the first.
	c.Command = []string{"sh", "-c", "i=0; while true; do i=$((i+1)); for d in data more; do echo $i >/$d/t; mv /$d/t /$d/n; sync; done; done"}
	x.run(s)
	x.podReady("pair-0")
	x.await("both to have been written", func() error {
		_, err := x.sh("pair-0", "cat /more/n")
		return err
	})
	x.ok(apply(x.ctx, fmt.Sprintf("apiVersion: groupsnapshot.storage.k8s.io/v1\nkind: VolumeGroupSnapshot\nmetadata: {name: both, namespace: %s}\n"+
		"spec: {volumeGroupSnapshotClassName: berth-local, source: {selector: {matchLabels: {app: pair}}}}\n", x.ns)))
	members := x.members(2)
	got := map[string]int{}
	for volume, member := range members {
		name := "from-" + volume
		r := set(name, "xfs", "320Mi")
		r.Spec.VolumeClaimTemplates[0].Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: new("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: member}
		x.run(r)
		x.podReady(name + "-0")
		out, err := x.sh(name+"-0", "cat /data/n")
		x.ok(err)
		var n int
		if _, err := fmt.Sscan(out, &n); err != nil {
			t.Fatalf("%s: %q, %v", member, out, err)
		}
		got[volume] = n
		x.gone(name)
	}
	if d := got["data-pair-0"] - got["more-pair-0"]; d != 0 && d != 1 {
		t.Errorf("the volumes are of different moments: %v", got)
	}
	cl, err := untyped()
	x.ok(err)
	groups := snapshotAPI("volumegroupsnapshots")
	groups.Group = "groupsnapshot.storage.k8s.io"
	x.ok(cl.Resource(groups).Namespace(x.ns).Delete(x.ctx, "both", metav1.DeleteOptions{}))
	x.await("the group and its members to be gone", func() error {
		list, err := cl.Resource(snapshotAPI("volumesnapshotcontents")).List(x.ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%d contents are left: %w", len(list.Items), err)
		}
		return nil
	})
	x.clean()
}

// members waits until n members of a group are ready, and returns their names by that of the claim.
func (x *test) members(n int) map[string]string {
	x.Helper()
	c, err := untyped()
	x.ok(err)
	all := map[string]string{}
	x.await("the group's members to be ready", func() error {
		list, err := c.Resource(snapshotAPI("volumesnapshots")).Namespace(x.ns).List(x.ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != n {
			return fmt.Errorf("%d members: %s, %w", len(list.Items), x.events(), err)
		}
		for _, o := range list.Items {
			ready, _, _ := unstructured.NestedBool(o.Object, "status", "readyToUse")
			content, _, _ := unstructured.NestedString(o.Object, "status", "boundVolumeSnapshotContentName")
			if !ready || content == "" {
				return fmt.Errorf("%s: %v", o.GetName(), o.Object["status"])
			}
			claim, err := x.claimOf(content)
			if err != nil {
				return err
			}
			all[claim] = o.GetName()
		}
		return nil
	})
	return all
}

// claimOf is the claim whose volume a content is a snapshot of.
func (x *test) claimOf(content string) (string, error) {
	c, err := untyped()
	if err != nil {
		return "", err
	}
	o, err := c.Resource(snapshotAPI("volumesnapshotcontents")).Get(x.ctx, content, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	handle, _, _ := unstructured.NestedString(o.Object, "spec", "source", "volumeHandle")
	list, err := node.cluster.Client.CoreV1().PersistentVolumes().List(x.ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, pv := range list.Items {
		if pv.Spec.CSI != nil && pv.Spec.CSI.VolumeHandle == handle {
			return pv.Spec.ClaimRef.Name, nil
		}
	}
	return "", fmt.Errorf("no volume %q", handle)
}
