//go:build cgo

package nvml

import (
	"context"
	"encoding/binary"
	"math"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// device finds a GPU by its address; a lost one is found as lost, and an address at which another GPU is now is
// NotFound. It is not looked up by UUID: nvmlDeviceGetHandleByUUID initialises GPU after GPU on its search, and says
// GPU_IS_LOST of whichever it meets (nvml.h).
func (s *Source) device(t discovery.Target) (d lib.Device, lost bool, err error) {
	d, r := s.lib.DeviceGetHandleByPciBusId(t.Bus)
	switch r {
	case lib.SUCCESS:
	case lib.ERROR_GPU_IS_LOST:
		return nil, true, nil
	default:
		return nil, false, failure("nvmlDeviceGetHandleByPciBusId "+t.Bus, r)
	}
	switch uuid, r := d.GetUUID(); {
	case r == lib.ERROR_GPU_IS_LOST:
		return nil, true, nil
	case r != lib.SUCCESS:
		return nil, false, failure("nvmlDeviceGetUUID "+t.Bus, r)
	case inventory.UUID(uuid) != t.UUID:
		return nil, false, errs.NotFound.Errorf("at %s is GPU %s, not %s", t.Bus, inventory.UUID(uuid), t.UUID)
	}
	return d, false, nil
}

// Sample implements discovery.Source. A figure of health that cannot be read is said to be unread, whether the GPU has
// none or one call failed; what is for the view alone is left at zero.
func (s *Source) Sample(_ context.Context, t discovery.Target) (health.Sample, error) {
	d, lost, err := s.device(t)
	if lost || err != nil {
		return health.Sample{Lost: lost}, err
	}
	var out health.Sample
	m, r := d.GetMemoryInfo()
	switch r {
	case lib.SUCCESS:
		out.MemoryUsed = m.Used
	case lib.ERROR_GPU_IS_LOST:
		return health.Sample{Lost: true}, nil
	case lib.ERROR_RESET_REQUIRED:
		out.Recovery = "reset"
	case lib.ERROR_NOT_SUPPORTED, lib.ERROR_NO_PERMISSION: // unified memory; a GPU in MIG mode
	default:
		return out, failure("nvmlDeviceGetMemoryInfo "+t.UUID, r)
	}
	s.evidence(t.UUID, d, &out)
	if t, r := d.GetTemperature(lib.TEMPERATURE_GPU); r == lib.SUCCESS {
		out.Temperature = int(t)
	}
	if mw, r := d.GetPowerUsage(); r == lib.SUCCESS {
		out.Power = int(mw / 1000)
	}
	if u, r := d.GetUtilizationRates(); r == lib.SUCCESS {
		out.Utilization = int(u.Gpu)
	}
	return out, nil
}

// evidence reads what health is judged by.
func (s *Source) evidence(uuid string, d lib.Device, out *health.Sample) {
	n, r := d.GetTotalEccErrors(lib.MEMORY_ERROR_TYPE_UNCORRECTED, lib.VOLATILE_ECC)
	if out.Unread.ECC = r != lib.SUCCESS; r == lib.SUCCESS {
		out.Uncorrected = n
	}
	_, _, pending, failed, r := d.GetRemappedRows()
	if out.Unread.Remap = r != lib.SUCCESS; r == lib.SUCCESS {
		out.RemapPending, out.RemapFailed = pending, failed
	}
	if out.Recovery == "" {
		out.Recovery, out.Unread.Recovery = recovery(d)
	}
	out.LinksDown, out.Unread.Links = s.linksDown(uuid, d)
}

// recovery asks what the driver wants done (NVML 12.8); "" of one that cannot say.
func recovery(d lib.Device) (action string, unread bool) {
	v := []lib.FieldValue{{FieldId: lib.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	r := d.GetFieldValues(v)
	if r == lib.SUCCESS {
		r = lib.Return(v[0].NvmlReturn)
	}
	switch r {
	case lib.SUCCESS:
	case lib.ERROR_NOT_SUPPORTED, lib.ERROR_INVALID_ARGUMENT, lib.ERROR_FUNCTION_NOT_FOUND:
		return "", false
	default:
		return "", true
	}
	switch lib.DeviceGpuRecoveryAction(binary.LittleEndian.Uint32(v[0].Value[:4])) {
	case lib.GPU_RECOVERY_ACTION_NONE:
		return "none", false
	case lib.GPU_RECOVERY_ACTION_GPU_RESET:
		return "reset", false
	case lib.GPU_RECOVERY_ACTION_NODE_REBOOT:
		return "reboot", false
	case lib.GPU_RECOVERY_ACTION_DRAIN_P2P:
		return "drain", false
	default: // drain and reset, and what later drivers add
		return "reset", false
	}
}

// linksDown counts NVLinks that were up since this process started and are not. One whose state cannot be read leaves
// the number unknown: it is not down.
func (s *Source) linksDown(uuid string, d lib.Device) (down int, unread bool) {
	up := 0
	for i := range lib.NVLINK_MAX_LINKS {
		switch state, r := d.GetNvLinkState(i); r {
		case lib.SUCCESS:
			if state == lib.FEATURE_ENABLED {
				up++
			}
		case lib.ERROR_INVALID_ARGUMENT: // the GPU has fewer
		case lib.ERROR_NOT_SUPPORTED:
			if i == 0 {
				return 0, true // it has none, or they are not to be seen in MIG mode
			}
		default:
			return 0, true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[uuid] = max(s.links[uuid], up)
	return s.links[uuid] - up, false
}

// Processes implements discovery.Source.
func (s *Source) Processes(_ context.Context, t discovery.Target) ([]discovery.Process, error) {
	d, lost, err := s.device(t)
	if lost || err != nil {
		return nil, err
	}
	all, r := d.GetComputeRunningProcesses()
	if r != lib.SUCCESS {
		return nil, failure("nvmlDeviceGetComputeRunningProcesses "+t.UUID, r)
	}
	var out []discovery.Process
	for _, p := range all {
		memory := p.UsedGpuMemory
		if memory == math.MaxUint64 { // NVML_VALUE_NOT_AVAILABLE
			memory = 0
		}
		out = append(out, discovery.Process{PID: int(p.Pid), Memory: memory})
	}
	return out, nil
}

// eventWait is how long one wait in the library lasts: how late an end of ctx is noticed.
const eventWait = 500 // milliseconds

// Events implements discovery.Source. The set is made on the first call and holds the GPUs of that moment; one that
// comes later is watched by its samples until the probe is started again.
func (s *Source) Events(ctx context.Context) ([]health.Event, error) {
	if err := s.subscribe(); err != nil {
		return nil, err
	}
	for ctx.Err() == nil {
		data, r := s.set.Wait(eventWait)
		switch r {
		case lib.SUCCESS:
		case lib.ERROR_TIMEOUT:
			continue
		default:
			return nil, failure("nvmlEventSetWait", r)
		}
		if data.EventType != lib.EventTypeXidCriticalError {
			continue
		}
		uuid, r := data.Device.GetUUID()
		if r != lib.SUCCESS {
			uuid = "" // it is going: its next sample says so
		}
		return []health.Event{{GPU: uuid, XID: int(data.EventData)}}, nil //nolint:gosec // an XID has three digits
	}
	return nil, ctx.Err()
}

func (s *Source) subscribe() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set != nil {
		return nil
	}
	set, r := s.lib.EventSetCreate()
	if r != lib.SUCCESS {
		return failure("nvmlEventSetCreate", r)
	}
	count, r := s.lib.DeviceGetCount()
	if r != lib.SUCCESS {
		return failure("nvmlDeviceGetCount", r)
	}
	for i := range count {
		if d, r := s.lib.DeviceGetHandleByIndex(i); r == lib.SUCCESS {
			_ = d.RegisterEvents(lib.EventTypeXidCriticalError, set) // one that cannot report is sampled
		}
	}
	s.set = set
	return nil
}
