package csi

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// pair is a set whose pod has two claims of 2900 MiB, which a pool of 5 GiB has room for singly but not together.
func pair() *appsv1.StatefulSet {
	s := set("pair", "btrfs", "2900Mi")
	s.Spec.VolumeClaimTemplates = append(s.Spec.VolumeClaimTemplates, claim("more", "btrfs", "2900Mi"))
	c := &s.Spec.Template.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "more", MountPath: "/more"})
	return s
}

// TestTogetherTooLarge: two claims of one pod that fit singly but not together, on the only node. The scheduler looks at
// each alone; the node refuses both, so that none keeps the pod there, and gives them back to the scheduler.
func TestTogetherTooLarge(t *testing.T) {
	x := begin(t, "too-large")
	s := pair()
	_, err := node.cluster.Client.AppsV1().StatefulSets(x.ns).Create(x.ctx, s, metav1.CreateOptions{})
	x.ok(err)
	x.await("the refusal", func() error {
		if all := x.events(); !strings.Contains(all, "resource exhausted") {
			return fmt.Errorf("events: %s", all)
		}
		return nil
	})
	out, err := exec.Command(node.lab.Bin+"/berth-csi", "--config", node.conf, "volumes").Output()
	if n := strings.Count(string(out), "\n") - 1; err != nil || n != 0 {
		t.Errorf("%d volumes of a pair were made, %v:\n%s", n, err, out)
	}
	x.clean()
}

// TestInline: a volume that a pod's own manifest asks for has a hard limit, and ends with the pod; an attribute that
// would choose where it is is refused.
func TestInline(t *testing.T) {
	x := begin(t, "inline")
	inline := func(name string, attributes map[string]string) *corev1.Pod {
		s := set(name, "", "1Mi")
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: s.Spec.Template.Spec}
		pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			CSI: &corev1.CSIVolumeSource{Driver: "csi.berth.dev", VolumeAttributes: attributes},
		}}}
		return pod
	}
	api := node.cluster.Client.CoreV1().Pods(x.ns)
	_, err := api.Create(x.ctx, inline("good", map[string]string{"size": "32Mi"}), metav1.CreateOptions{})
	x.ok(err)
	x.podReady("good")
	if out, err := x.sh("good", "dd if=/dev/zero of=/data/big bs=1M count=64 conv=fsync"); err == nil || !strings.Contains(out, "quota exceeded") {
		t.Errorf("64 MiB went into an inline volume of 32: %v, %s", err, out)
	}
	_, err = api.Create(x.ctx, inline("bad", map[string]string{"pool": "xfs"}), metav1.CreateOptions{})
	x.ok(err)
	x.await("the refusal", func() error {
		if all := x.events(); !strings.Contains(all, "volumeAttributes.pool is not allowed") {
			return fmt.Errorf("events: %s", all)
		}
		return nil
	})
	x.clean()
}

// TestRestartUnderLoad: the driver is killed and started again while claims wait; each gets exactly one volume.
func TestRestartUnderLoad(t *testing.T) {
	x := begin(t, "restart")
	const sets = 6
	for i := range sets {
		_, err := node.cluster.Client.AppsV1().StatefulSets(x.ns).Create(x.ctx, set(fmt.Sprintf("s%d", i), "btrfs", "64Mi"), metav1.CreateOptions{})
		x.ok(err)
	}
	node.csi.Kill()
	var err error
	node.csi, err = harness.Start(node.lab.Logs(), "berth-csi", nil, node.lab.Bin+"/berth-csi", "--config", node.conf)
	x.ok(err)
	for i := range sets {
		x.podReady(fmt.Sprintf("s%d-0", i))
	}
	out, err := exec.Command(node.lab.Bin+"/berth-csi", "--config", node.conf, "volumes").Output()
	if n := strings.Count(string(out), "\n") - 1; err != nil || n != sets {
		t.Errorf("%d volumes for %d claims, %v:\n%s", n, sets, err, out)
	}
	x.clean()
}
