package csi

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podOf is a pod that sleeps with a claim mounted at /data.
func podOf(name, claim string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: set(name, "", "1Mi").Spec.Template.Spec}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
	}}}
	return pod
}

// TestOnePodOnly: of a ReadWriteOncePod claim there is one user. A second pod waits at the scheduler, a third, which was
// placed by hand, at the kubelet; the second starts when the first is gone and finds what that wrote.
func TestOnePodOnly(t *testing.T) {
	x := begin(t, "alone")
	c := claim("one", "btrfs", "64Mi")
	c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	_, err := node.cluster.Client.CoreV1().PersistentVolumeClaims(x.ns).Create(x.ctx, &c, metav1.CreateOptions{})
	x.ok(err)
	pods := node.cluster.Client.CoreV1().Pods(x.ns)
	_, err = pods.Create(x.ctx, podOf("first", "one"), metav1.CreateOptions{})
	x.ok(err)
	x.podReady("first")
	_, err = x.sh("first", "dd if=/dev/urandom of=/data/file bs=1M count=4 && sync")
	x.ok(err)
	sum := x.sum("first")
	_, err = pods.Create(x.ctx, podOf("second", "one"), metav1.CreateOptions{})
	x.ok(err)
	third := podOf("third", "one")
	third.Spec.NodeName = node.lab.Node()
	_, err = pods.Create(x.ctx, third, metav1.CreateOptions{})
	x.ok(err)
	x.await("the scheduler to hold the second", func() error { return x.scheduled("second", corev1.ConditionFalse, "ReadWriteOncePod") })
	x.await("the kubelet to hold the third", func() error {
		if all := x.events(); !strings.Contains(all, "third: ") || !strings.Contains(all, "ReadWriteOncePod access mode and is already in use") {
			return fmt.Errorf("events: %s", all)
		}
		return nil
	})
	for _, name := range []string{"second", "third"} {
		pod, err := pods.Get(x.ctx, name, metav1.GetOptions{})
		x.ok(err)
		if pod.Status.Phase != corev1.PodPending {
			t.Errorf("%s is %s while the first has the claim", name, pod.Status.Phase)
		}
	}
	now := int64(0)
	x.ok(pods.Delete(x.ctx, "third", metav1.DeleteOptions{GracePeriodSeconds: &now}))
	x.ok(pods.Delete(x.ctx, "first", metav1.DeleteOptions{}))
	x.podReady("second")
	if got := x.sum("second"); got != sum {
		t.Errorf("the second reads %s, the first wrote %s", got, sum)
	}
	x.clean()
}

// scheduled says whether a pod's PodScheduled condition has a state and its message a word.
func (x *test) scheduled(name string, want corev1.ConditionStatus, word string) error {
	pod, err := node.cluster.Client.CoreV1().Pods(x.ns).Get(x.ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == want && strings.Contains(c.Message, word) {
			return nil
		}
	}
	return fmt.Errorf("its conditions are %v", pod.Status.Conditions)
}
