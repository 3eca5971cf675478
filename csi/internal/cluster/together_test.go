package cluster

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestClaimsOf: a pod's claims by name, those that it names and those that are made for it.
func TestClaimsOf(t *testing.T) {
	pod := &corev1.Pod{}
	pod.Name = "db-0"
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-db-0"}}},
		{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
	}
	if got := strings.Join(claimsOf(pod), " "); got != "data-db-0 db-0-scratch" {
		t.Error(got)
	}
}
