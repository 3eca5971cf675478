package cluster

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestNext: what is done about a VolumeSnapshotContent in every state that external-snapshotter's controller, its
// sidecar or we may have left it in.
func TestNext(t *testing.T) {
	made := &contentStatus{SnapshotHandle: "s1", ReadyToUse: true}
	failed := &contentStatus{Error: &snapshotError{Message: "full"}}
	mark := func(keys ...string) map[string]string {
		m := map[string]string{}
		for _, k := range keys {
			m[k] = "yes"
		}
		return m
	}
	for _, c := range []struct {
		name           string
		volume, handle string // of the source
		policy, ref    string
		marks          map[string]string
		deleted        bool
		noFinalizer    bool
		status         *contentStatus
		want           step
	}{
		{name: "new", volume: "v1", ref: "u", want: create},
		{name: "killed while it was made", volume: "v1", ref: "u", marks: mark(beingCreated), want: create},
		{name: "failed before", volume: "v1", ref: "u", status: failed, want: create},
		{name: "made, still marked", volume: "v1", ref: "u", marks: mark(beingCreated), status: made, want: unmark},
		{name: "made", volume: "v1", ref: "u", status: made, want: nothing},
		{name: "member of a group", volume: "v1", ref: "u", marks: mark(groupMember), want: nothing},
		{name: "member that was made", volume: "v1", ref: "u", marks: mark(groupMember), status: &contentStatus{SnapshotHandle: "s1"}, want: look},
		{name: "of a snapshot that exists", handle: "s1", ref: "u", want: look},
		{name: "of a snapshot that is known", handle: "s1", ref: "u", status: made, want: nothing},
		{name: "deleted, its VolumeSnapshot is there", volume: "v1", ref: "u", policy: "Delete", deleted: true, status: made, want: nothing},
		{name: "deleted", volume: "v1", ref: "u", policy: "Delete", marks: mark(beingDeleted), deleted: true, status: made, want: remove},
		{name: "deleted, retained", volume: "v1", ref: "u", policy: "Retain", marks: mark(beingDeleted), deleted: true, status: made, want: release},
		{name: "deleted before it had an answer", volume: "v1", ref: "u", policy: "Delete", marks: mark(beingDeleted, beingCreated), deleted: true, want: create},
		{name: "deleted, made, still marked", volume: "v1", ref: "u", policy: "Delete", marks: mark(beingDeleted, beingCreated), deleted: true, status: made, want: remove},
		{name: "deleted, never made", volume: "v1", ref: "u", policy: "Delete", marks: mark(beingDeleted), deleted: true, status: failed, want: release},
		{name: "deleted, never bound", handle: "s1", policy: "Delete", deleted: true, status: made, want: remove},
		{
			name: "deleted member", volume: "v1", ref: "u", policy: "Delete", marks: mark(beingDeleted), deleted: true,
			status: &contentStatus{SnapshotHandle: "s1", VolumeGroupSnapshotHandle: "g1"}, want: release,
		},
		{name: "deleted, let go", volume: "v1", ref: "u", policy: "Delete", marks: mark(beingDeleted), deleted: true, noFinalizer: true, status: made, want: nothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &content{Status: c.status}
			o.Spec.Source.VolumeHandle, o.Spec.Source.SnapshotHandle, o.Spec.DeletionPolicy = c.volume, c.handle, c.policy
			o.Spec.VolumeSnapshotRef.UID, o.Annotations = "", c.marks
			if c.ref != "" {
				o.Spec.VolumeSnapshotRef.UID = "u"
			}
			if c.deleted {
				o.DeletionTimestamp = new(metav1.Now())
			}
			if !c.noFinalizer {
				o.Finalizers = []string{"other", contentFinalizer}
			}
			if got := next(o); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestDecode: an object as the API server sends it.
func TestDecode(t *testing.T) {
	c, err := decode[content](&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": "c1", "annotations": map[string]any{beingCreated: "yes"}},
		"spec": map[string]any{
			"driver": "csi.berth.dev", "deletionPolicy": "Delete", "source": map[string]any{"volumeHandle": "v1"},
			"volumeSnapshotRef": map[string]any{"name": "n", "namespace": "ns", "uid": "u1"}, "sourceVolumeMode": "Filesystem",
		},
		"status": map[string]any{"snapshotHandle": "s1", "creationTime": int64(1) << 60, "restoreSize": int64(64 << 20), "readyToUse": true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "c1" || c.Spec.VolumeSnapshotRef.UID != "u1" || c.Spec.Source.VolumeHandle != "v1" || c.Status.CreationTime != 1<<60 ||
		c.Status.RestoreSize != 64<<20 || !c.Status.ReadyToUse || next(c) != unmark {
		t.Errorf("decoded as %+v with %+v", c, c.Status)
	}
}

// TestNextOfGroup: the same for groups.
func TestNextOfGroup(t *testing.T) {
	for _, c := range []struct {
		name                     string
		made, deleted, finalizer bool
		policy                   string
		marks                    []string
		want                     step
	}{
		{name: "new", want: create},
		{name: "killed while it was made", marks: []string{groupBeingCreated}, want: create},
		{name: "made, still marked", made: true, marks: []string{groupBeingCreated}, want: unmark},
		{name: "made", made: true, want: nothing},
		{name: "deleted, its VolumeGroupSnapshot is there", made: true, deleted: true, finalizer: true, policy: "Delete", want: nothing},
		{name: "deleted", made: true, deleted: true, finalizer: true, policy: "Delete", marks: []string{groupBeingDeleted}, want: remove},
		{name: "deleted, retained", made: true, deleted: true, finalizer: true, policy: "Retain", marks: []string{groupBeingDeleted}, want: release},
		{name: "deleted before it had an answer", deleted: true, finalizer: true, policy: "Delete", marks: []string{groupBeingDeleted, groupBeingCreated}, want: create},
		{name: "deleted, never made", deleted: true, finalizer: true, policy: "Delete", marks: []string{groupBeingDeleted}, want: release},
		{name: "deleted, let go", made: true, deleted: true, policy: "Delete", marks: []string{groupBeingDeleted}, want: nothing},
	} {
		o := &groupContent{}
		o.Spec.Source.VolumeHandles, o.Spec.DeletionPolicy, o.Annotations = []string{"v1", "v2"}, c.policy, map[string]string{}
		for _, m := range c.marks {
			o.Annotations[m] = "yes"
		}
		if c.deleted {
			o.DeletionTimestamp = new(metav1.Now())
		}
		if c.finalizer {
			o.Finalizers = []string{groupFinalizer}
		}
		if c.made {
			made, err := decode[groupContent](&unstructured.Unstructured{Object: map[string]any{"status": map[string]any{
				"volumeGroupSnapshotHandle": "g1", "readyToUse": true, "volumeSnapshotInfoList": []any{map[string]any{"snapshotHandle": "s1"}},
			}}})
			if err != nil || made.Status.Members[0].SnapshotHandle != "s1" {
				t.Fatalf("%+v, %v", made, err)
			}
			o.Status = made.Status
		}
		if got := nextOfGroup(o); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
