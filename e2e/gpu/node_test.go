// Package gpu tests berth-gpu below a real kubelet on berth-cri, with a profile in place of GPUs: what a pod gets,
// and that it keeps it. The device manager's own storms are in package manager, a module of its own.
package gpu

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	res "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/berth-project/berth/e2e/census"
	"github.com/berth-project/berth/e2e/harness"
)

const (
	port     = 11390
	busybox  = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	resource = "nvidia.com/gpu"
)

var node struct {
	lab     *harness.Lab
	cri     *harness.Process
	gpu     *harness.Process
	kubelet *harness.Kubelet
	client  *harness.Client
}

func TestMain(m *testing.M) {
	flag.Parse()
	lab, err := harness.FromEnv("gpu")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Pods = "10.94.0.0/16"
	os.Exit(harness.Isolate(lab, func() int { return inLab(m, lab) }))
}

func inLab(m *testing.M, lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var stale error
	for _, name := range []string{"berth-gpu-dra", "kube-apiserver", "etcd", "berth-gpu"} { // what an interrupted run left
		stale = errors.Join(stale, harness.StopByPidFile(filepath.Join(lab.Logs(), name+".pid")))
	}
	if err := errors.Join(stale, harness.Stop(ctx, lab)); err != nil {
		fmt.Fprintln(os.Stderr, "leftovers:", err)
		return 1
	}
	// the device manager's directory is fixed: this lab has its own, in its mount namespace
	if err := errors.Join(os.MkdirAll("/var/lib/kubelet", 0o755), unix.Mount("kubelet", "/var/lib/kubelet", "tmpfs", 0, "mode=755")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	before := census.Take(lab.Dir, lab.Run).Of("berth-" + lab.Name)
	code := 1
	if err := start(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		lab.KeepLogs(os.Stderr)
	}
	end, cancelEnd := context.WithTimeout(context.Background(), time.Minute)
	defer cancelEnd()
	if node.gpu != nil {
		if err := node.gpu.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "berth-gpu:", err)
			code = 1
		}
	}
	if err := harness.Stop(end, lab); err != nil {
		fmt.Fprintln(os.Stderr, "stop:", err)
		code = 1
	}
	var left []string
	for range 60 {
		if left = before.Diff(census.Take(lab.Dir, lab.Run).Of("berth-" + lab.Name)); len(left) == 0 {
			return code
		}
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "left behind:\n  %s\n", strings.Join(left, "\n  "))
	return 1
}

func start(ctx context.Context, lab *harness.Lab) error {
	node.lab = lab
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	var err error
	if node.cri, err = lab.StartCRI(ctx, harness.Options{}); err != nil {
		return err
	}
	if node.client, err = harness.Dial(lab.Socket()); err != nil {
		return err
	}
	if err := installDriver(driverRoot(lab)); err != nil {
		return err
	}
	b, err := os.ReadFile("../../deviceplugin/internal/discovery/fake/profiles/h100-mig.yaml")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(profile(), b, 0o600), startPlugin()); err != nil {
		return err
	}
	if node.kubelet, err = lab.StartKubelet(ctx, lab.Socket(), port); err != nil {
		return err
	}
	return awaitDevices(ctx, 2)
}

func driverRoot(lab *harness.Lab) string { return filepath.Join(lab.Dir, "driver") }

// startPlugin runs berth-gpu on a node of two H100, of which one is divided.
func startPlugin() error {
	lab := node.lab
	text := fmt.Sprintf("root = %q\nstate = %q\ndebug_socket = %q\nmig_strategy = \"mixed\"\n[kubelet]\ndir = %q\n[driver]\nroot = %q\ndev_view = %q\n[cdi]\ndir = %q\n[health]\npoll_ms = 200\n",
		filepath.Join(lab.Dir, "gpu"), filepath.Join(lab.Run, "gpu"), filepath.Join(lab.Run, "gpu/debug.sock"), filepath.Join(lab.Dir, "kubelet"), driverRoot(lab), filepath.Join(lab.Run, "dev"), lab.CDI())
	conf := filepath.Join(lab.Run, "gpu.toml")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	var err error
	node.gpu, err = harness.Start(lab.Logs(), "berth-gpu", nil, filepath.Join(lab.Bin, "berth-gpu"), "--config", conf, "--fake", profile())
	return err
}

// profile is a file, so that tests break GPUs by changing it.
func profile() string { return filepath.Join(node.lab.Run, "profile.yaml") }

// resources asks the kubelet who has what.
func resources(ctx context.Context) (res.PodResourcesListerClient, func(), error) {
	socket := filepath.Join(node.lab.Dir, "kubelet/pod-resources/kubelet.sock")
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, nil, err
	}
	return res.NewPodResourcesListerClient(conn), func() { _ = conn.Close() }, nil
}

// awaitDevices waits until the kubelet has so many kinds of devices of ours.
func awaitDevices(ctx context.Context, kinds int) error {
	return harness.Until(ctx, 50*time.Millisecond, node.gpu, func() error {
		c, done, err := resources(ctx)
		if err != nil {
			return err
		}
		defer done()
		all, err := c.GetAllocatableResources(ctx, &res.AllocatableResourcesRequest{})
		if err != nil {
			return err
		}
		var names []string
		for _, d := range all.GetDevices() {
			if !slices.Contains(names, d.GetResourceName()) {
				names = append(names, d.GetResourceName())
			}
		}
		if len(names) < kinds {
			return fmt.Errorf("the kubelet knows devices of %v", names)
		}
		return nil
	})
}

// assigned are a pod's devices as the kubelet says it.
func assigned(t *testing.T, name string) []string {
	t.Helper()
	c, done, err := resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	list, err := c.List(t.Context(), &res.ListPodResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, p := range list.GetPodResources() {
		for _, c := range p.GetContainers() {
			for _, d := range c.GetDevices() {
				if strings.HasPrefix(p.GetName(), name+"-berth-") {
					ids = append(ids, d.GetDeviceIds()...)
				}
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// apply gives the kubelet a pod of one container and waits until it is ready; it is deleted at the test's end.
func apply(t *testing.T, name, limits string) *harness.Pod {
	t.Helper()
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: %s
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "sleep 1000"]
    env: [{name: NVIDIA_VISIBLE_DEVICES, value: all}]
    resources: {limits: {%s}}
    securityContext: {capabilities: {add: [MKNOD]}}
`, name, busybox, limits)
	if err := node.kubelet.Apply(name, manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, name) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := node.kubelet.Await(ctx, name, (*harness.Pod).Ready)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := node.kubelet.Delete(name); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := harness.Until(ctx, 50*time.Millisecond, node.kubelet.Process, func() error {
		if _, err := node.kubelet.Pod(name); err == nil {
			return fmt.Errorf("the kubelet still has pod %s", name)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// sh runs a script in a pod's container.
func sh(t *testing.T, p *harness.Pod, script string) string {
	t.Helper()
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	out, err := node.client.Runtime.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 10})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out.GetStdout()) + string(out.GetStderr()))
}
