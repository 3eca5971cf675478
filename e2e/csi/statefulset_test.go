package csi

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// test is a namespace of its own, and what is asked again and again.
type test struct {
	*testing.T
	ctx context.Context
	ns  string
}

func begin(t *testing.T, name string) *test {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	t.Cleanup(cancel)
	x := &test{T: t, ctx: ctx, ns: name}
	_, err := node.cluster.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	x.ok(err)
	x.await("its service account", func() error {
		_, err := node.cluster.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return x
}

func (x *test) ok(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

func (x *test) await(what string, try func() error) {
	x.Helper()
	start := time.Now()
	if err := harness.Until(x.ctx, 30*time.Millisecond, node.csi, try); err != nil {
		x.Fatalf("waiting for %s: %v", what, err)
	}
	x.Logf("%6.2f s  %s", time.Since(start).Seconds(), what)
}

func claim(name, class, size string) corev1.PersistentVolumeClaim {
	return corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
}

// set is a StatefulSet of one pod that sleeps, with one claim "data".
func set(name, class, size string) *appsv1.StatefulSet {
	one, labels, grace, no := int32(1), map[string]string{"app": name}, int64(0), false
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, ServiceName: name,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, DNSPolicy: corev1.DNSDefault,
					Containers: []corev1.Container{{
						Name: "main", Image: busybox, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "100000"},
						VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
					}},
				},
			},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{claim("data", class, size)},
		},
	}
}

func (x *test) podReady(name string) *corev1.Pod {
	x.Helper()
	var pod *corev1.Pod
	x.await("pod "+name+" to be ready", func() (err error) {
		if pod, err = node.cluster.Client.CoreV1().Pods(x.ns).Get(x.ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%s: %s", pod.Status.Phase, x.events())
	})
	return pod
}

// events are the namespace's warnings, for messages.
func (x *test) events() string {
	list, err := node.cluster.Client.CoreV1().Events(x.ns).List(x.ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var all []string
	for _, e := range list.Items {
		if e.Type == corev1.EventTypeWarning {
			all = append(all, e.InvolvedObject.Name+": "+e.Message)
		}
	}
	return strings.Join(all[max(0, len(all)-4):], "; ")
}

// sh runs a command in a pod, by crictl on the node.
func (x *test) sh(pod, command string) (string, error) {
	x.Helper()
	p, err := node.cluster.Client.CoreV1().Pods(x.ns).Get(x.ctx, pod, metav1.GetOptions{})
	x.ok(err)
	id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "berth://")
	id = id[strings.LastIndexByte(id, '/')+1:]
	out, err := exec.CommandContext(x.ctx, node.lab.Tool+"/crictl", "-r", "unix://"+node.lab.Socket(), "exec", id, "sh", "-c", "{ "+command+"; } 2>&1").Output()
	return string(out), err
}

// TestStatefulSet: a claim becomes a volume where the scheduler placed the pod; the pod writes to its limit and is
// stopped there, and a neighbour notices nothing; the volume grows and changes its class while it is used; a snapshot, what is restored of it
// and a clone have its bytes; when all is deleted nothing is left.
func TestStatefulSet(t *testing.T) {
	for _, class := range []string{"btrfs", "xfs", "ext4"} {
		t.Run(class, func(t *testing.T) { begin(t, "life-"+class).life(class) })
	}
}

func (x *test) life(class string) {
	x.Helper()
	x.run(set("other", class, "320Mi"))
	x.run(set("db", class, "320Mi"))
	x.podReady("other-0")
	x.podReady("db-0")
	if out, err := x.sh("db-0", "dd if=/dev/zero of=/data/big bs=1M count=400 conv=fsync"); err == nil || !strings.Contains(out, "No space left") && !strings.Contains(out, "quota exceeded") {
		x.Errorf("400 MiB went into a volume of 320: %v, %s", err, out)
	}
	if out, err := x.sh("other-0", "dd if=/dev/zero of=/data/big bs=1M count=200 conv=fsync"); err != nil {
		x.Errorf("the neighbour of a full volume: %v, %s", err, out)
	}
	x.gone("other")
	_, err := x.sh("db-0", "rm /data/big && dd if=/dev/urandom of=/data/file bs=1M count=16 && sync")
	x.ok(err)
	want := x.sum("db-0")
	if class != "ext4" { // growing a mounted ext4 takes CAP_SYS_RESOURCE, which this machine does not give
		x.expand("data-db-0", "600Mi")
		if out, err := x.sh("db-0", "dd if=/dev/zero of=/data/more bs=1M count=400 conv=fsync"); err != nil {
			x.Errorf("400 MiB after growing to 600: %v, %s", err, out)
		}
	}
	x.modify("data-db-0", class)
	x.snapshot("before", "data-db-0")
	_, err = x.sh("db-0", "dd if=/dev/urandom of=/data/file bs=1M count=16 conv=notrunc,fsync")
	x.ok(err)
	x.copy("restored", class, &corev1.TypedLocalObjectReference{APIGroup: new("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "before"}, want)
	x.gone("restored")
	x.unsnapshots("before")
	x.copy("copy", class, &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "data-db-0"}, x.sum("db-0"))
	x.clean()
}

func (x *test) run(s *appsv1.StatefulSet) {
	x.Helper()
	_, err := node.cluster.Client.AppsV1().StatefulSets(x.ns).Create(x.ctx, s, metav1.CreateOptions{})
	x.ok(err)
}

// gone deletes a set and its claim.
func (x *test) gone(name string) {
	x.Helper()
	c := node.cluster.Client
	x.ok(c.AppsV1().StatefulSets(x.ns).Delete(x.ctx, name, metav1.DeleteOptions{}))
	x.ok(c.CoreV1().PersistentVolumeClaims(x.ns).Delete(x.ctx, "data-"+name+"-0", metav1.DeleteOptions{}))
	x.await("the claim of "+name+" to be gone", func() error {
		_, err := c.CoreV1().PersistentVolumeClaims(x.ns).Get(x.ctx, "data-"+name+"-0", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
}

// sum is the checksum of the file in a pod's volume.
func (x *test) sum(pod string) string {
	x.Helper()
	out, err := x.sh(pod, "sha256sum </data/file")
	if err != nil || len(out) < 64 {
		x.Fatalf("%s: %v: %s", pod, err, out)
	}
	return out
}

func (x *test) expand(name, size string) {
	x.Helper()
	api := node.cluster.Client.CoreV1().PersistentVolumeClaims(x.ns)
	c, err := api.Get(x.ctx, name, metav1.GetOptions{})
	x.ok(err)
	want := resource.MustParse(size)
	c.Spec.Resources.Requests[corev1.ResourceStorage] = want
	_, err = api.Update(x.ctx, c, metav1.UpdateOptions{})
	x.ok(err)
	x.await("claim "+name+" to have "+size, func() error {
		c, err := api.Get(x.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		have := c.Status.Capacity[corev1.ResourceStorage]
		pending := slices.ContainsFunc(c.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
			return c.Type == corev1.PersistentVolumeClaimFileSystemResizePending
		})
		if have.Cmp(want) < 0 || pending {
			return fmt.Errorf("it has %s, %v: %s", have.String(), c.Status.Conditions, x.events())
		}
		return nil
	})
}

// copy makes a set whose claim starts as a copy of something, larger than it, and compares the file.
func (x *test) copy(name, class string, of *corev1.TypedLocalObjectReference, want string) {
	x.Helper()
	s := set(name, class, "700Mi")
	s.Spec.VolumeClaimTemplates[0].Spec.DataSource = of
	x.run(s)
	x.podReady(name + "-0")
	if got := x.sum(name + "-0"); got != want {
		x.Errorf("%s, made of %s %s, has %q, want %q", name, of.Kind, of.Name, got, want)
	}
}

// clean deletes the namespace and waits until its volumes are gone from cluster and node.
func (x *test) clean() {
	x.Helper()
	x.ok(node.cluster.Client.CoreV1().Namespaces().Delete(x.ctx, x.ns, metav1.DeleteOptions{}))
	x.await("the namespace to be gone", func() error {
		_, err := node.cluster.Client.CoreV1().Namespaces().Get(x.ctx, x.ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there, %w", err)
	})
	x.await("its volumes to be gone", func() error {
		list, err := node.cluster.Client.CoreV1().PersistentVolumes().List(x.ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%d volumes are left, %w", len(list.Items), err)
		}
		out, err := exec.Command(node.lab.Bin+"/berth-csi", "--config", node.conf, "volumes").CombinedOutput()
		if err != nil || strings.Count(string(out), "\n") != 1 {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
