package gpu

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	api "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	dra "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/berth-project/berth/e2e/harness"
)

const driverName = "gpu.berth-project"

// draLab is an API server, berth-gpu-dra, and the calls a kubelet makes on it.
type draLab struct {
	t      *testing.T
	client kubernetes.Interface
	plugin dra.DRAPluginClient
}

func newDRA(t *testing.T) *draLab {
	t.Helper()
	d := &draLab{t: t}
	var kubeconfig string
	d.client, kubeconfig = apiServer(t)
	if _, err := d.client.CoreV1().Nodes().Create(t.Context(), &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.lab.Node()}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// a directory of its own: the lab's kubelet has no API server, and could not prepare a claim
	dir := filepath.Join(node.lab.Run, "dra")
	if err := os.MkdirAll(filepath.Join(dir, "plugins_registry"), 0o750); err != nil {
		t.Fatal(err)
	}
	p, err := harness.Start(node.lab.Logs(), "berth-gpu-dra", nil, filepath.Join(node.lab.Bin, "berth-gpu-dra"), "--node", node.lab.Node(),
		"--kubeconfig", kubeconfig, "--socket", filepath.Join(node.lab.Run, "gpu/debug.sock"), "--kubelet", dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "plugins", driverName, "dra.sock")
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d.plugin = dra.NewDRAPluginClient(conn)
	return d
}

// devices are what the node's slices offer.
func (d *draLab) devices() (names []string) {
	d.t.Helper()
	list, err := d.client.ResourceV1().ResourceSlices().List(d.t.Context(), metav1.ListOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, s := range list.Items {
		for _, x := range s.Spec.Devices {
			names = append(names, x.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (d *draLab) await(want ...string) {
	d.t.Helper()
	slices.Sort(want)
	ctx, cancel := context.WithTimeout(d.t.Context(), 15*time.Second)
	defer cancel()
	if err := harness.Until(ctx, 100*time.Millisecond, node.gpu, func() error {
		if got := d.devices(); !slices.Equal(got, want) {
			return fmt.Errorf("slices offer %v, want %v", got, want)
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
}

// allocated makes a claim and allocates a device to it, as the scheduler does.
func (d *draLab) allocated(name, device string) *dra.Claim {
	d.t.Helper()
	claims := d.client.ResourceV1().ResourceClaims("default")
	c, err := claims.Create(d.t.Context(), &api.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: api.ResourceClaimSpec{Devices: api.DeviceClaim{Requests: []api.DeviceRequest{{
			Name: "gpu", Exactly: &api.ExactDeviceRequest{DeviceClassName: "gpu", AllocationMode: api.DeviceAllocationModeExactCount, Count: 1},
		}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	c.Status.Allocation = &api.AllocationResult{Devices: api.DeviceAllocationResult{Results: []api.DeviceRequestAllocationResult{
		{Request: "gpu", Driver: driverName, Pool: node.lab.Node(), Device: device},
	}}}
	if c, err = claims.UpdateStatus(d.t.Context(), c, metav1.UpdateOptions{}); err != nil {
		d.t.Fatal(err)
	}
	return &dra.Claim{Namespace: "default", Name: name, Uid: string(c.UID)}
}

// prepare is the kubelet's call; the names are the claim's CDI devices.
func (d *draLab) prepare(c *dra.Claim) (names []string, failure string) {
	d.t.Helper()
	r, err := d.plugin.NodePrepareResources(d.t.Context(), &dra.NodePrepareResourcesRequest{Claims: []*dra.Claim{c}})
	if err != nil {
		d.t.Fatal(err)
	}
	x := r.GetClaims()[c.GetUid()]
	for _, dev := range x.GetDevices() {
		names = append(names, dev.GetCdiDeviceIds()...)
	}
	return names, x.GetError()
}

func (d *draLab) unprepare(c *dra.Claim) {
	d.t.Helper()
	r, err := d.plugin.NodeUnprepareResources(d.t.Context(), &dra.NodeUnprepareResourcesRequest{Claims: []*dra.Claim{c}})
	if err != nil || r.GetClaims()[c.GetUid()].GetError() != "" {
		d.t.Fatal(err, r)
	}
}

// offered waits until the device plugin's resource has so many healthy devices.
func offered(t *testing.T, line string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := harness.Until(ctx, 50*time.Millisecond, node.gpu, func() error {
		out, err := exec.CommandContext(ctx, filepath.Join(node.lab.Bin, "berth-gpu"), "--config", filepath.Join(node.lab.Run, "gpu.toml"), "status").CombinedOutput()
		if err == nil && !strings.Contains(strings.Join(strings.Fields(string(out)), " "), line) {
			err = fmt.Errorf("%s", out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestDRA: slices at a real API server, claims prepared and given back, and both ways of giving GPUs away at once
// without giving one away twice.
func TestDRA(t *testing.T) {
	d := newDRA(t)
	gpu := strings.ToLower(whole)
	mig := []string{"mig-be27f000-0000-4000-8000-000002000000", "mig-be27f000-0000-4000-8000-000007000000", "mig-be27f000-0000-4000-8000-000008000000"}
	d.await(append([]string{gpu}, mig...)...)
	first := d.allocated("first", gpu)
	for range 2 { // the kubelet asks again
		if names, failure := d.prepare(first); failure != "" || !slices.Equal(names, []string{"berth.nvidia.com/gpu=" + whole}) {
			t.Fatal(names, failure)
		}
	}
	offered(t, resource+" 0 1")
	if _, failure := d.prepare(d.allocated("second", gpu)); !strings.Contains(failure, "is held by the resource claim") {
		t.Error("the same GPU for two claims:", failure)
	}
	if _, failure := d.prepare(d.allocated("wrong", "gpu-00000000-0000-0000-0000-000000000000")); !strings.Contains(failure, "there is no device") {
		t.Error("a GPU that is not there:", failure)
	}
	node.gpu.Kill() // claims outlive the plugin
	if err := startPlugin(); err != nil {
		t.Fatal(err)
	}
	offered(t, resource+" 0 1")
	d.unprepare(first)
	d.unprepare(first)
	offered(t, resource+" 1 1")
	if err := awaitDevices(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	// the other way round: a pod has it by the device plugin
	apply(t, "plugin", resource+": 1")
	d.await(mig...)
	if _, failure := d.prepare(d.allocated("third", gpu)); !strings.Contains(failure, "given to a container by the device plugin") {
		t.Error("a GPU that a pod has, for a claim:", failure)
	}
	last := d.allocated("fourth", mig[1])
	if names, failure := d.prepare(last); failure != "" || len(names) != 1 {
		t.Error(names, failure)
	}
	d.unprepare(last)
}
