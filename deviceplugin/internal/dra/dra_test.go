package dra

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/view"
)

const (
	gpuA = "GPU-00000000-0000-0000-0000-00000000000a"
	gpuB = "GPU-00000000-0000-0000-0000-00000000000b"
	migC = "MIG-00000000-0000-0000-0000-00000000000c"
)

func twoGPUs() view.View {
	return view.View{Driver: inventory.Driver{Version: "580.1"}, GPUs: []view.GPU{
		{GPU: inventory.GPU{UUID: gpuA, Product: "NVIDIA H100", Bus: "0000:10:00.0", NUMA: -1, Memory: 80 << 30, Compute: "9.0"}},
		{GPU: inventory.GPU{UUID: gpuB, MIG: true, NUMA: 1, Instances: []inventory.Instance{{UUID: migC, Profile: "1g.10gb", Memory: 10 << 30}}}},
	}}
}

// books is a core that keeps a view and a list of claims.
type books struct {
	mu     sync.Mutex
	view   view.View
	err    error
	claims map[string][]string
}

func (b *books) View(context.Context) (view.View, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.view, b.err
}

func (b *books) set(change func(*books)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

func (b *books) Claim(_ context.Context, uid string, held, admin []string) ([]string, error) {
	if uid == "refused" {
		return nil, errors.New("somebody has it")
	}
	b.claims[uid] = held
	return slices.Concat(held, admin), nil
}

func (b *books) Release(_ context.Context, uid string) error {
	delete(b.claims, uid)
	return nil
}

func TestResources(t *testing.T) {
	v := twoGPUs()
	devices := Resources(v, "node").Pools["node"].Slices[0].Devices
	if len(devices) != 2 || devices[0].Name != strings.ToLower(gpuA) || devices[1].Name != strings.ToLower(migC) {
		t.Fatalf("%+v", devices)
	}
	if q := devices[0].Capacity["memory"].Value; q.Value() != 80<<30 || *devices[1].Attributes["profile"].StringValue != "1g.10gb" || len(devices[0].Taints) != 0 {
		t.Errorf("%+v", devices)
	}
	v.GPUs[1].Reason, v.Given = "lost", []string{gpuA}
	devices = Resources(v, "node").Pools["node"].Slices[0].Devices
	if len(devices) != 1 || devices[0].Taints[0].Effect != api.DeviceTaintEffectNoSchedule {
		t.Errorf("%+v", devices)
	}
	for _, u := range []string{gpuA, migC} {
		if UUID(DeviceName(u)) != u {
			t.Error(u)
		}
	}
	for _, name := range []string{"", "x", gpuA} {
		if UUID(name) != "" {
			t.Errorf("%q is a name", name)
		}
	}
}

func claim(uid string, results ...api.DeviceRequestAllocationResult) *api.ResourceClaim {
	return &api.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "n", UID: types.UID(uid)},
		Status:     api.ResourceClaimStatus{Allocation: &api.AllocationResult{Devices: api.DeviceAllocationResult{Results: results}}},
	}
}

func TestPrepare(t *testing.T) {
	b := &books{view: twoGPUs(), claims: map[string][]string{}}
	p := New(b, "driver", "node", slog.New(slog.DiscardHandler))
	mine := api.DeviceRequestAllocationResult{Request: "r", Driver: "driver", Pool: "node", Device: strings.ToLower(gpuA)}
	other, elsewhere, strange := mine, mine, mine
	other.Driver, elsewhere.Pool, strange.Device = "another", "node-2", gpuA
	admin := mine
	admin.Request, admin.AdminAccess = "watch", new(true)
	bare := claim("bare")
	bare.Status.Allocation = nil
	out, err := p.PrepareResourceClaims(t.Context(), []*api.ResourceClaim{
		claim("good", other, mine), claim("elsewhere", elsewhere), claim("strange", strange), claim("refused", mine), bare,
		claim("admin", admin), claim("both", admin, mine),
	})
	if err != nil {
		t.Fatal(err)
	}
	if g := out["good"]; g.Err != nil || len(g.Devices) != 1 || !slices.Equal(g.Devices[0].CDIDeviceIDs, []string{gpuA}) || !slices.Equal(g.Devices[0].Requests, []string{"r"}) {
		t.Errorf("%+v", g)
	}
	if g := out["admin"]; g.Err != nil || len(g.Devices) != 1 || !slices.Equal(g.Devices[0].CDIDeviceIDs, []string{gpuA}) || len(b.claims["admin"]) != 0 {
		t.Errorf("what is watched is held: %+v, %v", g, b.claims)
	}
	if g := out["both"]; g.Err != nil || len(g.Devices) != 2 || g.Devices[0].Requests[0] != "r" || g.Devices[1].Requests[0] != "watch" || !slices.Equal(b.claims["both"], []string{gpuA}) {
		t.Errorf("%+v, %v", g, b.claims)
	}
	for _, uid := range []string{"admin", "both"} {
		delete(b.claims, uid)
	}
	for uid, want := range map[types.UID]string{"elsewhere": "none of this node's", "strange": "none of this node's", "refused": "somebody has it", "bare": "not allocated"} {
		if g := out[uid]; g.Err == nil || !strings.Contains(g.Err.Error(), want) {
			t.Errorf("%s: %+v", uid, g)
		}
	}
	if _, err := p.UnprepareResourceClaims(t.Context(), []kubeletplugin.NamespacedObject{{UID: "good"}}); err != nil || len(b.claims) != 0 {
		t.Error(err, b.claims)
	}
}

// TestHealth: a report at once, another as soon as a GPU falls ill; a core that is away for a moment is no news.
func TestHealth(t *testing.T) {
	b := &books{view: twoGPUs(), claims: map[string][]string{}}
	p := New(b, "driver", "node", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	reports, done := make(chan kubeletplugin.DeviceHealthReport), make(chan error, 1)
	go func() { done <- p.WatchHealthStatus(ctx, reports) }()
	next := func() map[string]kubeletplugin.HealthStatus {
		t.Helper()
		select {
		case r := <-reports:
			out := map[string]kubeletplugin.HealthStatus{}
			for _, d := range r.Devices {
				out[d.DeviceName] = d.Health
			}
			return out
		case <-ctx.Done():
			t.Fatal("no report")
		}
		return nil
	}
	if h := next(); len(h) != 2 || h[DeviceName(migC)] != kubeletplugin.HealthStatusHealthy {
		t.Error(h)
	}
	b.set(func(b *books) { b.err = errors.New("away") })
	time.Sleep(look + look/2)
	b.set(func(b *books) {
		v := twoGPUs()
		v.GPUs[1].Reason = "lost"
		b.view, b.err = v, nil
	})
	if h := next(); h[DeviceName(migC)] != kubeletplugin.HealthStatusUnhealthy || h[DeviceName(gpuA)] != kubeletplugin.HealthStatusHealthy {
		t.Error(h)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
