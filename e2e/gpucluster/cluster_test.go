package gpucluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// apply creates the objects of a manifest. Of a DaemonSet the lab's processes stand in the place: it only has to decode.
func apply(ctx context.Context, text string) error {
	docs := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(doc, nil, nil)
		if err != nil {
			return err
		}
		if err := create(ctx, o); err != nil {
			return err
		}
	}
}

func create(ctx context.Context, o runtime.Object) (err error) {
	c, opts := node.cluster.Client, metav1.CreateOptions{}
	switch o := o.(type) {
	case *corev1.ServiceAccount:
		_, err = c.CoreV1().ServiceAccounts(o.Namespace).Create(ctx, o, opts)
	case *rbacv1.ClusterRole:
		_, err = c.RbacV1().ClusterRoles().Create(ctx, o, opts)
	case *rbacv1.ClusterRoleBinding:
		_, err = c.RbacV1().ClusterRoleBindings().Create(ctx, o, opts)
	case *resourcev1.DeviceClass:
		_, err = c.ResourceV1().DeviceClasses().Create(ctx, o, opts)
	case *appsv1.DaemonSet:
	default:
		err = fmt.Errorf("%T is not known here", o)
	}
	return err
}

// test is one with a namespace and a limit of time of its own.
type test struct {
	*testing.T
	ctx context.Context
	ns  string
}

// begin makes a namespace with a claim template of one GPU; at the end it is emptied, and every GPU free again.
func begin(t *testing.T, name string) *test {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	x := &test{T: t, ctx: ctx, ns: name}
	_, err := node.cluster.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	x.ok(err)
	x.await("its service account", func() error {
		_, err := node.cluster.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	one := resourcev1.DeviceRequest{Name: "gpu", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpu.berth-project"}}
	_, err = node.cluster.Client.ResourceV1().ResourceClaimTemplates(name).Create(ctx, &resourcev1.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{Name: "one"},
		Spec:       resourcev1.ResourceClaimTemplateSpec{Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{one}}}},
	}, metav1.CreateOptions{})
	x.ok(err)
	t.Cleanup(x.empty)
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
	if err := harness.Until(x.ctx, 50*time.Millisecond, node.gpu, try); err != nil {
		x.Fatalf("waiting for %s: %v", what, err)
	}
	x.Logf("%6.2f s  %s", time.Since(start).Seconds(), what)
}

// empty deletes the pods, and waits until nobody holds a GPU: neither the ledger, nor the slices, nor the node's status.
func (x *test) empty() {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	x.ctx = ctx
	now := int64(0)
	x.ok(node.cluster.Client.CoreV1().Pods(x.ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}))
	x.await("every GPU to be free", func() error {
		if s := status(x); len(s.Claims) > 0 || len(s.Given) > 0 {
			return fmt.Errorf("claims %v, given %v", s.Claims, s.Given)
		}
		return offered(ctx, gpus)
	})
}

// pod makes a pod of one container that asks for a GPU by one way.
func (x *test) pod(name string, byClaim bool, change ...func(*corev1.PodSpec)) {
	x.Helper()
	template, none := "one", int64(0)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &none,
			Containers: []corev1.Container{{
				Name: "c", Image: busybox, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", "sleep 1000"},
				Env:             []corev1.EnvVar{{Name: "NVIDIA_VISIBLE_DEVICES", Value: "all"}},
				SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"MKNOD"}}},
			}},
		},
	}
	c := &p.Spec.Containers[0]
	if byClaim {
		p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimTemplateName: &template}}
		c.Resources.Claims = []corev1.ResourceClaim{{Name: "gpu"}}
	} else {
		c.Resources.Limits = corev1.ResourceList{"nvidia.com/gpu": *one()}
	}
	for _, do := range change {
		do(&p.Spec)
	}
	_, err := node.cluster.Client.CoreV1().Pods(x.ns).Create(x.ctx, p, metav1.CreateOptions{})
	x.ok(err)
}

// running lists the test's pods whose container runs, by name, with the container's id.
func (x *test) running() map[string]string {
	list, err := node.cluster.Client.CoreV1().Pods(x.ns).List(x.ctx, metav1.ListOptions{})
	x.ok(err)
	out := map[string]string{}
	for _, p := range list.Items {
		if s := p.Status.ContainerStatuses; len(s) == 1 && s[0].State.Running != nil {
			_, out[p.Name], _ = strings.Cut(s[0].ContainerID, "://")
		}
	}
	return out
}

// run waits until a pod runs, and returns its container's id.
func (x *test) run(name string) (id string) {
	x.Helper()
	x.await(name+" to run", func() error {
		if id = x.running()[name]; id == "" {
			return errors.New("it does not")
		}
		return nil
	})
	return id
}

// sh runs a script in a container.
func (x *test) sh(id, script string) string {
	x.Helper()
	out, err := node.runtime.Runtime.ExecSync(x.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 10})
	x.ok(err)
	return strings.TrimSpace(string(out.GetStdout()) + string(out.GetStderr()))
}

// state is what the tests read of `berth-gpu status --json`.
type state struct {
	Override string
	Claims   map[string][]string
	Given    []string
	GPUs     []struct {
		UUID  string
		Minor int
	}
}

func status(x *test) (s state) {
	out, err := exec.CommandContext(x.ctx, filepath.Join(node.lab.Bin, "berth-gpu"), "--config", config(), "status", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	x.ok(err)
	return s
}

// offered is nil when the node's slices have so many devices, and its status as many of the device plugin's.
func offered(ctx context.Context, n int) error {
	list, err := node.cluster.Client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	devices := 0
	for _, s := range list.Items {
		devices += len(s.Spec.Devices)
	}
	if devices != n {
		return fmt.Errorf("the slices have %d devices, want %d", devices, n)
	}
	return allocatable(ctx, "nvidia.com/gpu", n)
}

func allocatable(ctx context.Context, name string, n int) error {
	o, err := node.cluster.Client.CoreV1().Nodes().Get(ctx, node.lab.Node(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	if q := o.Status.Allocatable[corev1.ResourceName(name)]; q.Value() != int64(n) {
		return fmt.Errorf("the node has %s of %s, want %d", q.String(), name, n)
	}
	return nil
}
