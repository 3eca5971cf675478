package cluster

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The snapshot API is defined by external-snapshotter (8.x) and not by Kubernetes, so its objects come without types.
// These hold the fields that this node reads or writes, no more.

const (
	snapshotGroup = "snapshot.storage.k8s.io"
	groupGroup    = "groupsnapshot.storage.k8s.io"
)

var (
	contentsResource  = schema.GroupVersionResource{Group: snapshotGroup, Version: "v1", Resource: "volumesnapshotcontents"}
	classesResource   = schema.GroupVersionResource{Group: snapshotGroup, Version: "v1", Resource: "volumesnapshotclasses"}
	snapshotsResource = schema.GroupVersionResource{Group: snapshotGroup, Version: "v1", Resource: "volumesnapshots"}
)

// The words that external-snapshotter's controller and its sidecar exchange on a content.
const (
	contentFinalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
	beingCreated     = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	beingDeleted     = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	managedBy        = "snapshot.storage.kubernetes.io/managed-by" // a label: the node, where snapshotting is distributed
	groupMember      = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle"
)

// content is a VolumeSnapshotContent.
type content struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Driver            string                 `json:"driver"`
		DeletionPolicy    string                 `json:"deletionPolicy"`
		VolumeSnapshotRef corev1.ObjectReference `json:"volumeSnapshotRef"`
		Source            struct {
			VolumeHandle   string `json:"volumeHandle"`   // of a snapshot to be made, or
			SnapshotHandle string `json:"snapshotHandle"` // of one that there is
		} `json:"source"`
	} `json:"spec"`
	Status *contentStatus `json:"status"`
}

type contentStatus struct {
	SnapshotHandle            string         `json:"snapshotHandle,omitempty"`
	CreationTime              int64          `json:"creationTime,omitempty"` // nanoseconds since 1970
	RestoreSize               int64          `json:"restoreSize,omitempty"`  // bytes
	ReadyToUse                bool           `json:"readyToUse"`
	Error                     *snapshotError `json:"error,omitempty"`
	VolumeGroupSnapshotHandle string         `json:"volumeGroupSnapshotHandle,omitempty"`
}

type snapshotError struct {
	Time    *metav1.Time `json:"time,omitempty"`
	Message string       `json:"message,omitempty"`
}

// snapshot is a VolumeSnapshot.
type snapshot struct {
	metav1.ObjectMeta `json:"metadata"`
	Status            struct {
		BoundVolumeSnapshotContentName string `json:"boundVolumeSnapshotContentName"`
		ReadyToUse                     bool   `json:"readyToUse"`
	} `json:"status"`
}

// snapshot is the handle of the snapshot that a content is of, or "".
func (c *content) snapshot() string {
	if c.Status != nil && c.Status.SnapshotHandle != "" {
		return c.Status.SnapshotHandle
	}
	return c.Spec.Source.SnapshotHandle
}

func decode[T any](o *unstructured.Unstructured) (*T, error) {
	out := new(T)
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, out)
}

// step is what is to be done next about a content.
type step string

const (
	nothing step = "nothing"
	create  step = "create"  // make the snapshot
	look    step = "look"    // say what is known of a snapshot that somebody else has made
	unmark  step = "unmark"  // it is made, its mark of being made is still there
	remove  step = "remove"  // remove the snapshot, then let the object go
	release step = "release" // let the object go, the snapshot stays
)

// next decides, purely. Whether the content is this node's is another question.
func next(c *content) step {
	if c.DeletionTimestamp != nil {
		return nextOfDeleted(c)
	}
	if c.Status != nil && c.Status.ReadyToUse {
		if _, marked := c.Annotations[beingCreated]; marked {
			return unmark
		}
		return nothing
	}
	_, member := c.Annotations[groupMember]
	switch {
	case c.Spec.Source.SnapshotHandle != "", member && c.snapshot() != "": // members are made with their group
		return look
	case c.Spec.Source.VolumeHandle != "" && !member:
		return create
	}
	return nothing
}

// nextOfDeleted: an object is let go when the controller has said that its VolumeSnapshot is going, or if it never had
// one; and not before a request to make the snapshot has had its answer.
func nextOfDeleted(c *content) step {
	if !slices.Contains(c.Finalizers, contentFinalizer) {
		return nothing
	}
	_, deleted := c.Annotations[beingDeleted]
	unbound := c.Spec.Source.SnapshotHandle != "" && c.Spec.VolumeSnapshotRef.UID == ""
	if !deleted && !unbound {
		return nothing
	}
	_, creating := c.Annotations[beingCreated]
	switch {
	case c.Spec.DeletionPolicy != "Delete" || c.Status != nil && c.Status.VolumeGroupSnapshotHandle != "":
		return release // a member goes with its group
	case c.Status != nil && c.Status.SnapshotHandle != "":
		return remove
	case creating && c.Spec.Source.VolumeHandle != "":
		return create // nobody knows whether it was made: the same call again says it, then it is removed
	}
	return release
}
