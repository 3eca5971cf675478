package dra

import (
	"context"
	"log/slog"
	"reflect"
	"time"

	api "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/proto/errs"
)

// Core is berth-gpu: inventory, health and the ledger. Claim and Release are idempotent. Claim takes held for a claim,
// so that nobody else gets them, and names admin, which others may have; it returns the CDI names of held, then admin.
type Core interface {
	View(ctx context.Context) (view.View, error)
	Claim(ctx context.Context, uid string, held, admin []string) (cdi []string, err error)
	Release(ctx context.Context, uid string) error
}

// Plugin is the kubelet's side.
type Plugin struct {
	core   Core
	driver string // name under which claims are allocated
	node   string
	log    *slog.Logger
}

var _ kubeletplugin.DRAPlugin = (*Plugin)(nil)

// New makes a plugin of a driver's name on a node.
func New(core Core, driver, node string, log *slog.Logger) *Plugin {
	return &Plugin{core, driver, node, log}
}

// PrepareResourceClaims implements kubeletplugin.DRAPlugin: the devices of each claim become the claim's in the
// ledger. One that the device plugin gave away meanwhile is an error, and the kubelet asks again.
func (p *Plugin) PrepareResourceClaims(ctx context.Context, claims []*api.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	out := map[types.UID]kubeletplugin.PrepareResult{}
	for _, c := range claims {
		devices, err := p.prepare(ctx, c)
		out[c.UID] = kubeletplugin.PrepareResult{Devices: devices, Err: err}
	}
	return out, nil
}

func (p *Plugin) prepare(ctx context.Context, c *api.ResourceClaim) ([]kubeletplugin.Device, error) {
	if c.Status.Allocation == nil {
		return nil, errs.FailedPrecondition.Errorf("claim %s/%s is not allocated", c.Namespace, c.Name)
	}
	var devices, watched []kubeletplugin.Device // watched: with admin access
	var held, admin []string
	for _, r := range c.Status.Allocation.Devices.Results {
		if r.Driver != p.driver {
			continue
		}
		uuid := UUID(r.Device)
		if r.Pool != p.node || uuid == "" {
			return nil, errs.InvalidArgument.Errorf("claim %s/%s: device %s/%s is none of this node's", c.Namespace, c.Name, r.Pool, r.Device)
		}
		d := kubeletplugin.Device{Requests: []string{r.Request}, PoolName: r.Pool, DeviceName: r.Device}
		if r.AdminAccess != nil && *r.AdminAccess { // resource/v1: whatever ordinary claims hold, and they whatever it does
			admin, watched = append(admin, uuid), append(watched, d)
			continue
		}
		held, devices = append(held, uuid), append(devices, d)
	}
	devices = append(devices, watched...)
	names, err := p.core.Claim(ctx, string(c.UID), held, admin)
	if err != nil {
		return nil, err
	}
	if len(names) != len(devices) {
		return nil, errs.Internal.Errorf("claim %s/%s: %d names for %d devices", c.Namespace, c.Name, len(names), len(devices))
	}
	for i := range devices {
		devices[i].CDIDeviceIDs = []string{names[i]}
	}
	return devices, nil
}

// UnprepareResourceClaims implements kubeletplugin.DRAPlugin.
func (p *Plugin) UnprepareResourceClaims(ctx context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	out := map[types.UID]error{}
	for _, c := range claims {
		out[c.UID] = p.core.Release(ctx, string(c.UID))
	}
	return out, nil
}

// HandleError implements kubeletplugin.DRAPlugin: the helper goes on by itself.
func (p *Plugin) HandleError(_ context.Context, err error, msg string) {
	p.log.Error(msg, "error", err)
}

// Publisher publishes slices.
type Publisher interface {
	PublishResources(ctx context.Context, resources resourceslice.DriverResources) error
}

// look is how often berth-gpu is asked, fresh how long a report of health is good for at the kubelet.
const (
	look  = time.Second
	fresh = 30 * time.Second
)

// Publish keeps the node's slices what berth-gpu says, until ctx ends. While berth-gpu does not answer they stay.
func (p *Plugin) Publish(ctx context.Context, to Publisher) error {
	var last *resourceslice.DriverResources
	return p.each(ctx, func(v view.View) error {
		next := Resources(v, p.node)
		if last != nil && reflect.DeepEqual(*last, next) {
			return nil
		}
		if err := to.PublishResources(ctx, next); err != nil {
			return err
		}
		last = &next
		return nil
	})
}

// each calls do with a view a second.
func (p *Plugin) each(ctx context.Context, do func(view.View) error) error {
	t := time.NewTicker(look)
	defer t.Stop()
	silent := false
	for {
		v, err := p.core.View(ctx)
		if (err != nil) != silent {
			silent = err != nil
			p.log.Warn("berth-gpu", "answers", !silent, "error", err)
		}
		if err == nil {
			if err := do(v); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// WatchHealthStatus implements kubeletplugin.DRAPlugin: the health of all devices on each change, and often enough
// that the kubelet never thinks it stale.
func (p *Plugin) WatchHealthStatus(ctx context.Context, reports chan<- kubeletplugin.DeviceHealthReport) error {
	var last map[string]kubeletplugin.HealthStatus
	var sent time.Time
	return p.each(ctx, func(v view.View) error {
		now, next := time.Now(), Healths(v)
		if reflect.DeepEqual(next, last) && now.Sub(sent) < fresh/3 {
			return nil
		}
		var r kubeletplugin.DeviceHealthReport
		for name, h := range next {
			r.Devices = append(r.Devices, kubeletplugin.DeviceHealth{PoolName: p.node, DeviceName: name, Health: h, LastUpdated: now})
		}
		select {
		case reports <- r:
			last, sent = next, now
		case <-ctx.Done():
		}
		return nil
	})
}

// Healths is each device's health, by its name in the slice.
func Healths(v view.View) map[string]kubeletplugin.HealthStatus {
	out := map[string]kubeletplugin.HealthStatus{}
	for _, g := range v.GPUs {
		h := kubeletplugin.HealthStatusHealthy
		if g.Reason != "" {
			h = kubeletplugin.HealthStatusUnhealthy
		}
		if !g.MIG {
			out[DeviceName(g.UUID)] = h
		}
		for _, in := range g.Instances {
			out[DeviceName(in.UUID)] = h
		}
	}
	return out
}
