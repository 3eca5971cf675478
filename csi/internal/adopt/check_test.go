package adopt

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/proto/errs"
)

// TestDirectory: what is adopted, and what is not, with the reason.
func TestDirectory(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"kubernetes.io/hostname": "n1", "zone": "z"}}}
	affinity := func(key string, values ...string) *corev1.VolumeNodeAffinity {
		return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}},
		}}}}
	}
	good := func() *corev1.PersistentVolume {
		return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			NodeAffinity:           affinity("kubernetes.io/hostname", "n1"),
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/opt/local-path/pvc-1"}},
		}}
	}
	for _, c := range []struct {
		name   string
		change func(*corev1.PersistentVolumeSpec)
		want   string
	}{
		{"local-path", func(*corev1.PersistentVolumeSpec) {}, "/opt/local-path/pvc-1"},
		{"local", func(s *corev1.PersistentVolumeSpec) {
			s.PersistentVolumeSource = corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/mnt/disk1"}}
		}, "/mnt/disk1"},
		{"another node", func(s *corev1.PersistentVolumeSpec) { s.NodeAffinity = affinity("kubernetes.io/hostname", "n2") }, ""},
		{"this node or another", func(s *corev1.PersistentVolumeSpec) { s.NodeAffinity = affinity("kubernetes.io/hostname", "n1", "n2") }, ""},
		{"any node", func(s *corev1.PersistentVolumeSpec) { s.NodeAffinity = nil }, ""},
		{"up and out", func(s *corev1.PersistentVolumeSpec) { s.HostPath.Path = "/opt/../etc" }, ""},
		{"the whole host", func(s *corev1.PersistentVolumeSpec) { s.HostPath.Path = "/" }, ""},
		{"shared", func(s *corev1.PersistentVolumeSpec) {
			s.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, ""},
		{"raw block", func(s *corev1.PersistentVolumeSpec) { s.VolumeMode = new(corev1.PersistentVolumeBlock) }, ""},
		{"no size", func(s *corev1.PersistentVolumeSpec) { s.Capacity = nil }, ""},
		{"another driver's", func(s *corev1.PersistentVolumeSpec) {
			s.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "x"}}
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			pv := good()
			c.change(&pv.Spec)
			got, err := directory(pv, node)
			if got != c.want || (err == nil) != (c.want != "") || err != nil && errs.Of(err) != errs.FailedPrecondition {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// TestFileNames: a name never leads out of the directory for saved objects.
func TestFileNames(t *testing.T) {
	a := New(Config{Saved: "/saved"}, nil, nil, nil)
	if path, err := a.file("pvc-1.x"); err != nil || path != "/saved/pvc-1.x.json" {
		t.Errorf("%q, %v", path, err)
	}
	for _, bad := range []string{"", "..", "../x", "a/b", "A", "a\x00"} {
		if path, err := a.file(bad); errs.Of(err) != errs.InvalidArgument {
			t.Errorf("%q: %q, %v", bad, path, err)
		}
	}
}
