//go:build cgo

package nvml

import (
	"context"
	"fmt"
	"strings"
	"sync"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/procfs"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// Source asks the library. Its calls may be made at the same time (NVML is thread safe).
type Source struct {
	lib   lib.Interface
	files *procfs.Source

	mu    sync.Mutex
	links map[string]int // GPU -> most NVLinks seen up at once
	topo  topology
	set   lib.EventSet
}

// topology is the matrix of a set of GPUs: 120 pairs of 16 are asked once, not each second.
type topology struct {
	of    string
	links []inventory.Link
}

var _ discovery.Source = (*Source)(nil)

// Open loads the library and initialises it. A library or a driver that is not there is Unavailable.
func Open(c Config) (discovery.Source, error) {
	var opts []lib.LibraryOption
	if c.Library != "" {
		opts = append(opts, lib.WithLibraryPath(c.Library))
	}
	s := &Source{lib: lib.New(opts...), files: &procfs.Source{Proc: c.Proc, Sys: c.Sys}, links: map[string]int{}}
	if r := s.lib.Init(); r != lib.SUCCESS {
		return nil, failure("nvmlInit", r)
	}
	return s, nil
}

// failure turns a return code into an error of our classes. The library's own table of texts is used only where it
// is loaded.
func failure(call string, r lib.Return) error {
	switch r {
	case lib.ERROR_NOT_FOUND, lib.ERROR_GPU_IS_LOST:
		return errs.NotFound.Errorf("%s: %v", call, r)
	case lib.ERROR_NOT_SUPPORTED, lib.ERROR_FUNCTION_NOT_FOUND:
		return errs.Unimplemented.Errorf("%s: %v", call, r)
	default:
		return errs.Unavailable.Errorf("%s: %v (NVML %d)", call, r, r)
	}
}

// Name implements discovery.Source.
func (s *Source) Name() string { return "nvml" }

// Inventory implements discovery.Source. A GPU whose identity cannot be read is left out; one that fails later is
// listed with what is known.
func (s *Source) Inventory(context.Context) (*inventory.Node, error) {
	n := &inventory.Node{Machine: s.files.Machine()}
	var r lib.Return
	if n.Driver.Version, r = s.lib.SystemGetDriverVersion(); r != lib.SUCCESS {
		return nil, failure("nvmlSystemGetDriverVersion", r)
	}
	if v, r := s.lib.SystemGetCudaDriverVersion(); r == lib.SUCCESS {
		n.Driver.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	caps, err := s.files.Caps()
	if err != nil {
		return nil, err
	}
	count, r := s.lib.DeviceGetCount()
	if r != lib.SUCCESS {
		return nil, failure("nvmlDeviceGetCount", r)
	}
	devices := map[string]lib.Device{}
	for i := range count {
		d, r := s.lib.DeviceGetHandleByIndex(i)
		if r != lib.SUCCESS {
			continue // lost: the node keeps what it knew of it
		}
		g, err := s.gpu(i, d, caps)
		if err != nil {
			continue
		}
		devices[g.UUID] = d
		n.GPUs = append(n.GPUs, g)
	}
	n.Links = s.topology(n, devices)
	return n, nil
}

func (s *Source) gpu(index int, d lib.Device, caps inventory.Caps) (inventory.GPU, error) {
	g := inventory.GPU{Index: index, NUMA: -1}
	var r lib.Return
	if g.UUID, r = d.GetUUID(); r != lib.SUCCESS {
		return g, failure("nvmlDeviceGetUUID", r)
	}
	if g.Minor, r = d.GetMinorNumber(); r != lib.SUCCESS {
		return g, failure("nvmlDeviceGetMinorNumber", r)
	}
	pci, r := d.GetPciInfo()
	if r != lib.SUCCESS {
		return g, failure("nvmlDeviceGetPciInfo", r)
	}
	g.Bus = inventory.Bus(text(pci.BusId[:]))
	if name, r := d.GetName(); r == lib.SUCCESS {
		g.Product = name
	}
	if m, r := d.GetMemoryInfo(); r == lib.SUCCESS {
		g.Memory = m.Total
	}
	if major, minor, r := d.GetCudaComputeCapability(); r == lib.SUCCESS {
		g.Compute = fmt.Sprintf("%d.%d", major, minor)
	}
	s.files.Place(&g)
	g.Clique = s.clique(d)
	if mode, _, r := d.GetMigMode(); r == lib.SUCCESS && mode == lib.DEVICE_MIG_ENABLE {
		g.MIG = true
		g.Instances = instances(d, g.Minor, caps)
	}
	return g, nil
}

// clique is empty but for a GPU that has joined a fabric. Libraries before driver 525 cannot be asked: the call of a function that
// they lack would be the process's end.
func (s *Source) clique(d lib.Device) string {
	if s.lib.Extensions().LookupSymbol("nvmlDeviceGetGpuFabricInfo") != nil {
		return ""
	}
	f, r := d.GetGpuFabricInfo()
	if r != lib.SUCCESS || f.State != lib.GPU_FABRIC_STATE_COMPLETED || lib.Return(f.Status) != lib.SUCCESS || f.ClusterUuid == [16]uint8{} {
		return ""
	}
	u := f.ClusterUuid
	return fmt.Sprintf("%x-%x-%x-%x-%x.%d", u[:4], u[4:6], u[6:8], u[8:10], u[10:], f.CliqueId)
}

func instances(d lib.Device, minor int, caps inventory.Caps) (all []inventory.Instance) {
	count, r := d.GetMaxMigDeviceCount()
	if r != lib.SUCCESS {
		return nil
	}
	for i := range count {
		m, r := d.GetMigDeviceHandleByIndex(i)
		if r != lib.SUCCESS {
			continue // slots that are empty are NOT_FOUND
		}
		var in inventory.Instance
		if in.UUID, r = m.GetUUID(); r != lib.SUCCESS {
			continue
		}
		if in.GI, r = m.GetGpuInstanceId(); r != lib.SUCCESS {
			continue
		}
		if in.CI, r = m.GetComputeInstanceId(); r != lib.SUCCESS {
			continue
		}
		// "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me": the profile as nvidia-smi writes it
		if name, r := m.GetName(); r == lib.SUCCESS {
			in.Profile = name[strings.LastIndex(name, " ")+1:]
		}
		if mem, r := m.GetMemoryInfo(); r == lib.SUCCESS {
			in.Memory = mem.Total
		}
		if a, r := m.GetAttributes(); r == lib.SUCCESS {
			in.Engines = inventory.Engines{
				Multiprocessors: int(a.MultiprocessorCount), Copy: int(a.SharedCopyEngineCount), Decoder: int(a.SharedDecoderCount),
				Encoder: int(a.SharedEncoderCount), JPEG: int(a.SharedJpegCount), OFA: int(a.SharedOfaCount),
			}
		}
		in.GICap, in.CICap = caps.Instance(minor, in.GI, in.CI)
		all = append(all, in)
	}
	return all
}

// text is a C string in an array.
func text(b []uint8) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// topology asks for all pairs, once for a set of GPUs.
func (s *Source) topology(n *inventory.Node, devices map[string]lib.Device) []inventory.Link {
	key := ""
	for _, g := range n.GPUs {
		key += g.UUID + g.Bus
	}
	s.mu.Lock()
	known := s.topo
	s.mu.Unlock()
	if known.of == key {
		return append([]inventory.Link(nil), known.links...)
	}
	peers := map[string]map[string]int{}
	for _, g := range n.GPUs {
		peers[g.UUID] = nvlinks(devices[g.UUID])
	}
	var all []inventory.Link
	for i, b := range n.GPUs {
		for _, a := range n.GPUs[:i] {
			l := inventory.Link{A: a.UUID, B: b.UUID, Path: inventory.PathSystem, NVLinks: peers[a.UUID][b.Bus]}
			if level, r := devices[a.UUID].GetTopologyCommonAncestor(devices[b.UUID]); r == lib.SUCCESS {
				l.Path = pathOf(level)
			}
			// links to switches reach everybody who has some: as many as the one with fewer has
			l.NVLinks += min(peers[a.UUID][""], peers[b.UUID][""])
			all = append(all, l)
		}
	}
	s.mu.Lock()
	s.topo = topology{key, all}
	s.mu.Unlock()
	return append([]inventory.Link(nil), all...)
}

// nvlinks counts the active links by the peer's bus; those to switches under "".
func nvlinks(d lib.Device) map[string]int {
	peers := map[string]int{}
	for i := range lib.NVLINK_MAX_LINKS {
		if state, r := d.GetNvLinkState(i); r != lib.SUCCESS || state != lib.FEATURE_ENABLED {
			continue
		}
		if kind, r := d.GetNvLinkRemoteDeviceType(i); r == lib.SUCCESS && kind == lib.NVLINK_DEVICE_TYPE_SWITCH {
			peers[""]++
			continue
		}
		if pci, r := d.GetNvLinkRemotePciInfo(i); r == lib.SUCCESS {
			peers[inventory.Bus(text(pci.BusId[:]))]++
		}
	}
	return peers
}

func pathOf(level lib.GpuTopologyLevel) inventory.Path {
	switch level {
	case lib.TOPOLOGY_INTERNAL:
		return inventory.PathBoard
	case lib.TOPOLOGY_SINGLE:
		return inventory.PathSwitch
	case lib.TOPOLOGY_MULTIPLE:
		return inventory.PathMulti
	case lib.TOPOLOGY_HOSTBRIDGE:
		return inventory.PathBridge
	case lib.TOPOLOGY_NODE:
		return inventory.PathNUMA
	default:
		return inventory.PathSystem
	}
}
