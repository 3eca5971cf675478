package gone

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNext: each policy against each state of a volume.
func TestNext(t *testing.T) {
	for _, c := range []struct {
		phase                   corev1.PersistentVolumePhase
		reclaim                 corev1.PersistentVolumeReclaimPolicy
		report, forget, release step
	}{
		{corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, tell, forget, forget},
		{corev1.VolumeReleased, corev1.PersistentVolumeReclaimRetain, tell, tell, tell},
		{corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete, tell, tell, unbind},
		{corev1.VolumeBound, corev1.PersistentVolumeReclaimRetain, tell, tell, tell},
		{corev1.VolumeAvailable, corev1.PersistentVolumeReclaimDelete, tell, tell, tell},
	} {
		pv := &corev1.PersistentVolume{
			Spec:   corev1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: c.reclaim, ClaimRef: &corev1.ObjectReference{Name: "c"}},
			Status: corev1.PersistentVolumeStatus{Phase: c.phase},
		}
		for p, want := range map[Policy]step{Report: c.report, Forget: c.forget, Release: c.release} {
			if got := next(pv, p); got != want {
				t.Errorf("%s, %s, policy %s: %s, want %s", c.phase, c.reclaim, p, got, want)
			}
		}
	}
}

func volume(name, driver, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u-" + "1", Finalizers: []string{"kubernetes.io/pv-protection", ours}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: name}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "d/node", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeReleased},
	}
}

func content(name, driver, node string, deleted bool) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"driver": driver}}}
	o.SetAPIVersion("snapshot.storage.k8s.io/v1")
	o.SetKind("VolumeSnapshotContent")
	o.SetName(name)
	o.SetAnnotations(map[string]string{"d/node": node})
	o.SetFinalizers([]string{"x/other", contentFinalizer})
	if deleted {
		now := metav1.Now()
		o.SetDeletionTimestamp(&now)
	}
	return o
}

// TestLook: only volumes of our driver whose node has been missing for long are let go; one that is back is not missed
// any more.
func TestLook(t *testing.T) {
	objects := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{contentsResource: "VolumeSnapshotContentList"},
		content("deleted", "d", "gone", true), content("kept", "d", "gone", false), content("here", "d", "here", true), content("other", "x", "gone", true))
	client := fake.NewClientset(volume("ours", "d", "gone"), volume("here", "d", "here"), volume("other", "x", "gone"),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}})
	c := New(Config{Driver: "d", TopologyKey: "d/node", Policy: Forget, After: time.Hour, Every: time.Minute, Log: slog.New(slog.DiscardHandler)}, client, objects)
	names := func() (all []string) {
		list, err := client.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, pv := range list.Items {
			all = append(all, pv.Name)
		}
		slices.Sort(all)
		return all
	}
	start, all := time.Now(), []string{"here", "other", "ours"}
	look := func(after time.Duration, want []string) {
		t.Helper()
		if err := c.Look(t.Context(), start.Add(after)); err != nil {
			t.Error(err)
		}
		if got := names(); !slices.Equal(got, want) {
			t.Errorf("after %s there are %v, want %v", after, got, want)
		}
	}
	look(0, all)
	look(59*time.Minute, all)
	if _, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "gone"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	look(61*time.Minute, all)
	if err := client.CoreV1().Nodes().Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	look(62*time.Minute, all)
	look(121*time.Minute, all)
	look(123*time.Minute, []string{"here", "other"})
	if _, err := client.CoreV1().PersistentVolumes().Get(t.Context(), "ours", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	for name, want := range map[string][]string{"deleted": {"x/other"}, "kept": {"x/other", contentFinalizer}, "here": {"x/other", contentFinalizer}, "other": {"x/other", contentFinalizer}} {
		o, err := objects.Resource(contentsResource).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || !slices.Equal(o.GetFinalizers(), want) {
			t.Errorf("content %s has the finalizers %v, want %v, %v", name, o.GetFinalizers(), want, err)
		}
	}
}

// TestValidate: a policy is named in full or refused.
func TestValidate(t *testing.T) {
	good := Config{Policy: Report, After: time.Hour, Every: time.Minute}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []Config{{Policy: "delete", After: 1, Every: 1}, {Policy: Report, Every: 1}, {Policy: Report, After: 1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is good", bad)
		}
	}
}
