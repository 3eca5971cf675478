// Package dra serves GPUs by Dynamic Resource Allocation (KEP-4381, v1): Resources turns what berth-gpu knows into
// ResourceSlices, Plugin answers the kubelet. The gRPC services, the registration and the publishing are the
// upstream helper's (k8s.io/dynamic-resource-allocation/kubeletplugin).
//
// It knows nothing of NVML, CDI files or device plugins: all of that is berth-gpu's, behind [Core].
package dra

import (
	"slices"
	"strings"

	api "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/deviceplugin/internal/view"
)

// DeviceName is a device's in a slice: its UUID as a DNS label, which it is but for its case.
func DeviceName(uuid string) string { return strings.ToLower(uuid) }

// UUID is the way back; "" for what is no name of ours.
func UUID(name string) string {
	if len(name) < 4 || name != strings.ToLower(name) {
		return ""
	}
	return inventory.UUID(name)
}

// Taint is on a device whose GPU is unhealthy: nothing new is scheduled on it, what runs goes on.
const Taint = "gpu.berth-project/unhealthy"

// Resources are a node's devices, in one pool of the node's name: GPUs that are not divided, and the instances of
// those that are. A device that the device plugin has given to a container is withdrawn until it comes back.
func Resources(v view.View, node string) resourceslice.DriverResources {
	var devices []api.Device
	add := func(uuid string, g view.GPU, memory uint64, more map[api.QualifiedName]api.DeviceAttribute) {
		if slices.Contains(v.Given, uuid) {
			return
		}
		d := api.Device{Name: DeviceName(uuid), Attributes: map[api.QualifiedName]api.DeviceAttribute{
			"uuid": text(uuid), "productName": text(g.Product), "driverVersion": text(v.Driver.Version),
			"index": number(g.Index), "resource.kubernetes.io/pciBusID": text(g.Bus),
		}}
		if g.Compute != "" {
			d.Attributes["cudaComputeCapability"] = text(g.Compute)
		}
		if g.NUMA >= 0 {
			d.Attributes["numaNode"] = number(g.NUMA)
		}
		for k, a := range more {
			d.Attributes[k] = a
		}
		if memory > 0 {
			d.Capacity = map[api.QualifiedName]api.DeviceCapacity{"memory": {Value: *resource.NewQuantity(int64(memory), resource.BinarySI)}} //nolint:gosec // bytes of a GPU
		}
		if g.Reason != "" {
			d.Taints = []api.DeviceTaint{{Key: Taint, Value: string(g.Health.Phase), Effect: api.DeviceTaintEffectNoSchedule}}
		}
		devices = append(devices, d)
	}
	for _, g := range v.GPUs {
		if !g.MIG {
			add(g.UUID, g, g.Memory, map[api.QualifiedName]api.DeviceAttribute{"type": text("gpu")})
			continue
		}
		for _, in := range g.Instances {
			add(in.UUID, g, in.Memory, map[api.QualifiedName]api.DeviceAttribute{"type": text("mig"), "profile": text(in.Profile), "parentUUID": text(g.UUID)})
		}
	}
	return resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{node: {Slices: []resourceslice.Slice{{Devices: devices}}}}}
}

// text is an attribute's string, at most 64 bytes (resource.k8s.io/v1 DeviceAttributeMaxValueLength).
func text(s string) api.DeviceAttribute {
	s = s[:min(len(s), api.DeviceAttributeMaxValueLength)]
	return api.DeviceAttribute{StringValue: &s}
}

func number(n int) api.DeviceAttribute {
	v := int64(n)
	return api.DeviceAttribute{IntValue: &v}
}
