package csi

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	authv1 "k8s.io/api/authentication/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const lostVolume = `apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s, finalizers: [external-provisioner.volume.kubernetes.io/finalizer]}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: btrfs
  csi: {driver: csi.berth.dev, volumeHandle: v%[1]s}
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: %[2]s, name: %[3]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: csi.berth.dev/node, operator: In, values: [node-that-was]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[3]s, namespace: %[2]s}
spec: {storageClassName: btrfs, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, volumeName: %[1]s}
`

const lostSnapshot = `apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata:
  name: lost-s
  annotations: {csi.berth.dev/node: node-that-was}
  finalizers: [snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection]
spec:
  driver: csi.berth.dev
  deletionPolicy: Delete
  source: {snapshotHandle: s00000000000000000000000000000000}
  volumeSnapshotRef: {namespace: %[1]s, name: lost}
`

// TestNodeGone: of a node that will not return, the Deployment lets go what was deleted and, where its policy says so,
// deletes the claims. It runs with the rights of deploy/csi/gone.yaml and no others.
func TestNodeGone(t *testing.T) {
	x := begin(t, "gone")
	x.ok(applyFile(x.ctx, "../../deploy/csi/gone.yaml"))
	x.ok(apply(x.ctx, fmt.Sprintf(lostVolume, "lost-a", x.ns, "a")))
	x.ok(apply(x.ctx, fmt.Sprintf(lostVolume, "lost-b", x.ns, "b")))
	x.ok(apply(x.ctx, fmt.Sprintf(lostSnapshot, x.ns)))
	c := node.cluster.Client
	for _, name := range []string{"a", "b"} {
		x.await("claim "+name+" to be bound", func() error {
			claim, err := x.claim(name)
			if err != nil || claim.Status.Phase != corev1.ClaimBound {
				return fmt.Errorf("%s, %w", claim.Status.Phase, err)
			}
			return nil
		})
	}
	x.ok(c.CoreV1().PersistentVolumeClaims(x.ns).Delete(x.ctx, "a", metav1.DeleteOptions{}))
	objects, err := untyped()
	x.ok(err)
	contents := objects.Resource(snapshotAPI("volumesnapshotcontents"))
	x.ok(contents.Delete(x.ctx, "lost-s", metav1.DeleteOptions{}))
	stop := x.collector("forget")
	x.await("the deleted volume to be let go", func() error { return x.absent("lost-a") })
	x.await("the deleted snapshot to be let go", func() error {
		_, err := contents.Get(x.ctx, "lost-s", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
	if err := x.absent("lost-b"); err == nil {
		t.Error("a volume with a claim was let go")
	}
	stop()
	stop = x.collector("release")
	x.await("the other to be let go", func() error { return x.absent("lost-b") })
	stop()
	x.clean()
}

func (x *test) absent(pv string) error {
	_, err := node.cluster.Client.CoreV1().PersistentVolumes().Get(x.ctx, pv, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s is there: %w", pv, err)
}

// collector runs `berth-csi gone` as its service account until the returned function is called.
func (x *test) collector(policy string) (stop func()) {
	x.Helper()
	token, err := node.cluster.Client.CoreV1().ServiceAccounts("kube-system").CreateToken(x.ctx, "berth-csi-gone", &authv1.TokenRequest{}, metav1.CreateOptions{})
	x.ok(err)
	kubeconfig, err := node.cluster.Kubeconfig("gone", token.Status.Token)
	x.ok(err)
	p, err := harness.Start(node.lab.Logs(), "berth-csi-gone", nil, node.lab.Bin+"/berth-csi", "gone", "--kubeconfig", kubeconfig, "--policy", policy, "--after", "1s", "--every", "200ms")
	x.ok(err)
	return func() {
		x.Helper()
		x.ok(p.Stop())
	}
}

// cordon lets no further pod be scheduled to a node, until uncordon or the function that it returns is called.
func (x *test) cordon(name string) (end func()) {
	x.Helper()
	x.schedulable(x.ctx, name, false)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		x.schedulable(ctx, name, true)
	}
}

func (x *test) uncordon(name string) {
	x.Helper()
	x.schedulable(x.ctx, name, true)
}

func (x *test) schedulable(ctx context.Context, name string, yes bool) {
	x.Helper()
	_, err := node.cluster.Client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, !yes), metav1.PatchOptions{})
	x.ok(err)
}

// TestDrain: a node is drained: nothing is mounted or attached there any more, and the volume and its bytes are there when
// the pod comes back.
func TestDrain(t *testing.T) {
	x := begin(t, "drain")
	classes := []string{"btrfs", "xfs"}
	sums := map[string]string{}
	for _, class := range classes {
		x.run(set(class, class, "320Mi"))
		x.podReady(class + "-0")
		_, err := x.sh(class+"-0", "dd if=/dev/urandom of=/data/file bs=1M count=8 && sync")
		x.ok(err)
		sums[class] = x.sum(class + "-0")
	}
	defer x.cordon(node.lab.Node())()
	for _, class := range classes {
		x.ok(node.cluster.Client.PolicyV1().Evictions(x.ns).Evict(x.ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: class + "-0", Namespace: x.ns}}))
	}
	x.await("nothing to be staged on the node", func() error {
		out, err := exec.Command(node.lab.Bin+"/berth-csi", "--config", node.conf, "volumes").CombinedOutput()
		if err != nil || strings.Contains(string(out), node.lab.KubeletDir()) {
			return fmt.Errorf("%w: %s", err, out)
		}
		out, err = exec.Command("losetup", "-a").CombinedOutput()
		if err != nil || strings.Contains(string(out), node.lab.Dir+"/pool-xfs/p/") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	x.uncordon(node.lab.Node())
	for _, class := range classes {
		x.podReady(class + "-0")
		if got := x.sum(class + "-0"); got != sums[class] {
			t.Errorf("%s: the file is %s, want %s", class, got, sums[class])
		}
	}
	x.clean()
}
