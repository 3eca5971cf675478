// Package server is the kubelet's side: the device plugin API v1beta1 for each resource, and its registration, both
// ways. It reads the node's states and decides nothing but what a request asks.
package server

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/cdi"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/proto/errs"
)

// devices is the list the kubelet gets: all of them, each time.
func devices(r *policy.Resource) []*dp.Device {
	if r == nil {
		return nil
	}
	out := make([]*dp.Device, 0, len(r.Devices))
	for _, d := range r.Devices {
		x := &dp.Device{ID: d.ID, Health: dp.Unhealthy}
		if d.Healthy() {
			x.Health = dp.Healthy
		}
		if d.NUMA >= 0 {
			x.Topology = &dp.TopologyInfo{Nodes: []*dp.NUMANode{{ID: int64(d.NUMA)}}}
		}
		out = append(out, x)
	}
	return out
}

// pick resolves a container's ids. Nothing that is unknown, named twice or unhealthy is ever given away.
func pick(r *policy.Resource, ids []string) ([]policy.Device, error) {
	if len(ids) == 0 {
		return nil, errs.InvalidArgument.Errorf("%s: no device ids", r.Rule.Name)
	}
	if len(ids) > len(r.Devices) {
		return nil, errs.InvalidArgument.Errorf("%s: %d device ids, there are %d devices", r.Rule.Name, len(ids), len(r.Devices))
	}
	if r.Rule.One && len(ids) > 1 {
		return nil, errs.InvalidArgument.Errorf("%s: %d shares for one container: they would be shares of the same time; request 1", r.Rule.Name, len(ids))
	}
	if r.Rule.Sharing == policy.MPS && len(ids) > 1 {
		return nil, errs.InvalidArgument.Errorf("%s: %d shares for one container: a program is one daemon's client, with one share's memory; request 1", r.Rule.Name, len(ids))
	}
	var picked []policy.Device
	seen := map[string]bool{}
	for _, id := range ids {
		i := slices.IndexFunc(r.Devices, func(d policy.Device) bool { return d.ID == id })
		switch {
		case i < 0:
			return nil, errs.NotFound.Errorf("%s: there is no device %q", r.Rule.Name, id)
		case seen[id]:
			return nil, errs.InvalidArgument.Errorf("%s: device %s is named twice", r.Rule.Name, id)
		case !r.Devices[i].Healthy():
			return nil, errs.FailedPrecondition.Errorf("%s: device %s is unhealthy: %s", r.Rule.Name, id, r.Devices[i].Reason)
		}
		seen[id] = true
		picked = append(picked, r.Devices[i])
	}
	return picked, nil
}

// Response options.
type responder struct {
	annotations bool
	// mpsDir is where the MPS daemons' directories are, by resource and GPU.
	mpsDir string
}

// answer is what a container gets for its devices: their CDI names, each GPU once, and nothing of it depends on
// anything but the ids and the rules, because the kubelet gives the same answer to each restart of the container.
func (a responder) answer(r *policy.Resource, picked []policy.Device) *dp.ContainerAllocateResponse {
	out := &dp.ContainerAllocateResponse{}
	var names []string
	for _, d := range picked {
		if n := cdi.Name(d.UUID); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		out.CdiDevices = append(out.CdiDevices, &dp.CDIDevice{Name: n})
	}
	if a.annotations {
		// the key is one per resource, so that the kubelet's merge of several resources keeps them all
		key := "cdi.k8s.io/berth-gpu_" + strings.NewReplacer("/", "_").Replace(r.Rule.Name)
		out.Annotations = map[string]string{key: strings.Join(names, ",")}
	}
	if r.Rule.Sharing == policy.MPS {
		a.mps(out, r, picked[0]) // the only one: pick refuses two
	}
	return out
}

// mps points a client at its GPU's daemon and says what memory it may have.
func (a responder) mps(out *dp.ContainerAllocateResponse, r *policy.Resource, d policy.Device) {
	dir := filepath.Join(a.mpsDir, d.UUID)
	out.Envs = map[string]string{
		"CUDA_MPS_PIPE_DIRECTORY":                                    "/var/run/nvidia-mps",
		"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT":                           "0=" + strconv.FormatUint(r.Rule.ClientMemory(d)>>20, 10) + "M",
		"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE":                          strconv.Itoa(max(100/r.Rule.Replicas, 1)),
		"CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING": "0",
	}
	out.Mounts = []*dp.Mount{
		{HostPath: filepath.Join(dir, "pipe"), ContainerPath: "/var/run/nvidia-mps"},
		{HostPath: filepath.Join(dir, "shm"), ContainerPath: "/dev/shm"},
	}
}

// prefer chooses among what is available, keeping to the healthy ones as the kubelet does.
func prefer(r *policy.Resource, score func(a, b string) int, req *dp.ContainerPreferredAllocationRequest) (*dp.ContainerPreferredAllocationResponse, error) {
	all := make([]alloc.Device, len(r.Devices))
	for i, d := range r.Devices {
		all[i] = alloc.Device{ID: d.ID, GPU: d.GPU}
	}
	ids, err := alloc.Choose(alloc.Request{
		All: all, Available: req.GetAvailableDeviceIDs(), Must: req.GetMustIncludeDeviceIDs(), Size: int(req.GetAllocationSize()),
		Policy: r.Rule.Spread, Score: score,
	})
	if err != nil {
		return nil, err
	}
	return &dp.ContainerPreferredAllocationResponse{DeviceIDs: ids}, nil
}
