package csi

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const localPath = `apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local-path}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: pvc-old, annotations: {pv.kubernetes.io/provisioned-by: rancher.io/local-path}}
spec:
  capacity: {storage: 320Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: local-path
  hostPath: {path: %s, type: DirectoryOrCreate}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}
`

// TestAdopt: a volume as local-path-provisioner makes them is taken over under its claim: refused while a pod uses it,
// then moved, with the same bytes, a limit, and the same names; the directory stays.
func TestAdopt(t *testing.T) {
	x := begin(t, "adopt")
	dir := filepath.Join(node.lab.Dir, "local-path/pvc-old")
	x.ok(os.MkdirAll(dir, 0o777))
	x.ok(apply(x.ctx, fmt.Sprintf(localPath, dir, node.lab.Node())))
	x.run(set("db", "local-path", "320Mi"))
	x.podReady("db-0")
	_, err := x.sh("db-0", "dd if=/dev/urandom of=/data/file bs=1M count=16 && ln /data/file /data/again && ln -s file /data/link && chown 1000:1000 /data/file && sync")
	x.ok(err)
	want := x.sum("db-0")
	admin, err := node.cluster.Kubeconfig("operator", node.cluster.Token("admin"))
	x.ok(err)
	adopt := func() (string, error) {
		out, err := exec.CommandContext(x.ctx, node.lab.Bin+"/berth-csi", "--config", node.conf, "adopt", "--pool", "xfs", "--kubeconfig", admin, "pvc-old").CombinedOutput()
		return string(out), err
	}
	if out, err := adopt(); err == nil || !strings.Contains(out, "db-0 uses its claim") {
		t.Errorf("adopted beneath a pod: %v, %s", err, out)
	}
	x.scale("db", 0)
	out, err := adopt()
	if err != nil || !strings.Contains(out, "pvc-old: adopted, as volume v") {
		t.Fatalf("adopt: %v, %s", err, out)
	}
	if out, err := adopt(); err != nil || !strings.Contains(out, "adopted already") {
		t.Errorf("adopted again: %v, %s", err, out)
	}
	x.scale("db", 1)
	x.podReady("db-0")
	if got := x.sum("db-0"); got != want {
		t.Errorf("the file is %s, want %s", got, want)
	}
	if out, err := x.sh("db-0", "stat -c '%u %h' /data/file && readlink /data/link"); err != nil || out != "1000 2\nfile\n" {
		t.Errorf("owner, links and link: %q, %v", out, err)
	}
	if out, err := x.sh("db-0", "dd if=/dev/zero of=/data/big bs=1M count=400 conv=fsync"); err == nil || !strings.Contains(out, "No space left") {
		t.Errorf("400 MiB went into an adopted volume of 320: %v, %s", err, out)
	}
	if _, err := os.Stat(dir + "/file"); err != nil {
		t.Errorf("the old directory: %v", err)
	}
	x.clean()
}

// scale sets the number of pods of a set, and waits until it has no pod if that is none.
func (x *test) scale(name string, n int32) {
	x.Helper()
	c := node.cluster.Client
	s, err := c.AppsV1().StatefulSets(x.ns).Get(x.ctx, name, metav1.GetOptions{})
	x.ok(err)
	s.Spec.Replicas = &n
	_, err = c.AppsV1().StatefulSets(x.ns).Update(x.ctx, s, metav1.UpdateOptions{})
	x.ok(err)
	if n > 0 {
		return
	}
	x.await("pod "+name+"-0 to be gone", func() error {
		_, err := c.CoreV1().Pods(x.ns).Get(x.ctx, name+"-0", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
}
