package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// TestMoved: two claims of one pod that fit singly but not together on the node that it prefers. That node refuses both
// and offers less; the pod is scheduled onto another, with a kubelet, a runtime and a driver of its own, where both
// are made; and nothing is left behind on the first.
func TestMoved(t *testing.T) {
	x := begin(t, "moved")
	defer func() { x.ok(endSecond(context.Background())) }()
	conf := x.startSecond()
	s := pair()
	spec := &s.Spec.Template.Spec
	spec.HostNetwork = true // both nodes share the lab's network namespace
	spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
		Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node.lab.Node()}},
		}},
	}}}}
	x.run(s)
	x.await("the first node's refusal", func() error {
		if all := x.events(); !strings.Contains(all, "of one pod want") {
			return fmt.Errorf("events: %s", all)
		}
		return nil
	})
	if pod := x.podReady("pair-0"); pod.Spec.NodeName != node.second.Node() {
		t.Errorf("the pod is on %s, want %s", pod.Spec.NodeName, node.second.Node())
	}
	if n := x.volumes(conf); n != 2 {
		t.Errorf("the second node has %d volumes, want 2", n)
	}
	if n := x.volumes(node.conf); n != 0 {
		t.Errorf("the first node has %d volumes", n)
	}
	for _, sub := range []string{"volumes", "building", "trash"} {
		left, err := os.ReadDir(filepath.Join(node.lab.Dir, "pool-btrfs/p", sub))
		x.ok(err)
		if len(left) > 0 {
			t.Errorf("left behind on the first node: %s/%s", sub, left[0].Name())
		}
	}
	x.backToItsSource()
	x.clean()
	x.await("the second node's volumes to be gone", func() error {
		if n := x.volumes(conf); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
}

// backToItsSource: what is made of a snapshot must be where it is. The node that the scheduler takes first does not have it, says so
// and gives the claim back, and the pod comes to the node that has it.
func (x *test) backToItsSource() {
	x.Helper()
	first, second := node.lab.Node(), node.second.Node()
	end := x.cordon(second)
	x.run(set("src", "xfs", "320Mi"))
	x.podReady("src-0")
	_, err := x.sh("src-0", "dd if=/dev/urandom of=/data/file bs=1M count=8 && sync")
	x.ok(err)
	x.snapshot("here", "data-src-0")
	end()
	end = x.cordon(first)
	s := set("restored", "xfs", "320Mi")
	s.Spec.VolumeClaimTemplates[0].Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: new("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "here"}
	x.run(s)
	x.await("the second node's refusal", func() error {
		if all := x.events(); !strings.Contains(all, "must be where it is") {
			return fmt.Errorf("events: %s", all)
		}
		return nil
	})
	end()
	defer x.cordon(second)()
	if pod := x.podReady("restored-0"); pod.Spec.NodeName != first {
		x.Errorf("the pod is on %s, the snapshot on %s", pod.Spec.NodeName, first)
	}
	if want, got := x.sum("src-0"), x.sum("restored-0"); got != want {
		x.Errorf("restored: %q, want %q", got, want)
	}
	x.gone("restored")
	x.unsnapshots("here")
}

// volumes is how many volumes a node has.
func (x *test) volumes(conf string) int {
	x.Helper()
	out, err := exec.CommandContext(x.ctx, node.lab.Bin+"/berth-csi", "--config", conf, "volumes").Output()
	x.ok(err)
	return strings.Count(string(out), "\n") - 1
}

// startSecond runs a second node, whose pools have room, and returns its driver's configuration.
func (x *test) startSecond() (conf string) {
	x.Helper()
	lab := node.second
	x.ok(os.MkdirAll(lab.Dir, 0o711))
	x.ok(os.Symlink(node.lab.Hosts(), lab.Hosts())) // the same registry
	_, err := lab.StartCRI(x.ctx, harness.Options{Conflist: `{"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "loopback"}]}`})
	x.ok(err)
	_, err = node.cluster.Join(x.ctx, lab, lab.Socket(), 11451)
	x.ok(err)
	for _, fs := range pools() {
		x.ok(makePool(lab, fs, 10<<30))
	}
	conf, err = configure(x.ctx, lab)
	x.ok(err)
	_, err = runDriver(x.ctx, lab, conf)
	x.ok(err)
	return conf
}

// endSecond ends the second node, if there is one, and proves that nothing is left of it.
func endSecond(ctx context.Context) error {
	if node.cluster != nil {
		err := node.cluster.Client.CoreV1().Nodes().Delete(ctx, node.second.Node(), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return errors.Join(unmountPools(node.second), harness.Stop(ctx, node.second))
}
