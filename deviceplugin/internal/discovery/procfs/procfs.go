// Package procfs learns of GPUs from /proc/driver/nvidia and /sys/bus/pci, and of XIDs from the kernel's log: all
// that can be known without NVML, and without anything that can hang in the driver.
//
// What it cannot tell: memory sizes, compute capabilities, NVLink, ECC, MIG instances' UUIDs. A GPU in MIG mode is
// listed without its instances, and says so by its mode.
package procfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// Source reads the two file systems. KernelLog is "/dev/kmsg", or empty where XIDs come from elsewhere.
type Source struct {
	Proc, Sys, KernelLog string

	mu   sync.Mutex
	kmsg *os.File // stays open for the program's life
}

var _ discovery.Source = (*Source)(nil)

// Name implements discovery.Source.
func (s *Source) Name() string { return "proc" }

func (s *Source) nvidia(more ...string) string {
	return filepath.Join(append([]string{s.Proc, "driver/nvidia"}, more...)...)
}

// Inventory implements discovery.Source. A driver that is not loaded is Unavailable.
func (s *Source) Inventory(context.Context) (*inventory.Node, error) {
	n := &inventory.Node{Machine: s.Machine()}
	b, err := os.ReadFile(s.nvidia("version"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.Unavailable.Errorf("%s is not there: the NVIDIA kernel module is not loaded", s.nvidia("version"))
	}
	if err != nil {
		return nil, err
	}
	n.Driver.Version = driverVersion(string(b))
	caps, err := s.Caps()
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir(s.nvidia("gpus"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, d := range dirs {
		b, err := os.ReadFile(s.nvidia("gpus", d.Name(), "information"))
		if err != nil {
			continue // it is going, or fell: the others are still there
		}
		g, ok := information(string(b))
		if !ok {
			continue
		}
		g.Index = len(n.GPUs)
		s.Place(&g)
		for name := range caps {
			if strings.HasPrefix(name, fmt.Sprintf("gpu%d/", g.Minor)) {
				_, err := os.Stat(s.nvidia("capabilities", fmt.Sprintf("gpu%d", g.Minor), "mig", strings.Split(name, "/")[1]))
				g.MIG = g.MIG || err == nil && strings.Count(name, "/") == 2
			}
		}
		n.GPUs = append(n.GPUs, g)
	}
	s.link(n)
	return n, nil
}

// Machine is the firmware's name for the machine (SMBIOS type 1), or "".
func (s *Source) Machine() string {
	b, err := os.ReadFile(filepath.Join(s.Sys, "class/dmi/id/product_name"))
	if err != nil {
		return "" // a machine without SMBIOS
	}
	return strings.TrimSpace(string(b))
}

// Caps reads the minors of MIG capabilities; none where the driver has no MIG.
func (s *Source) Caps() (inventory.Caps, error) {
	f, err := os.Open(filepath.Join(s.Proc, "driver/nvidia-caps/mig-minors"))
	if errors.Is(err, os.ErrNotExist) {
		return inventory.Caps{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return inventory.ParseCaps(f)
}

var versionIn = regexp.MustCompile(`Kernel Module(?: for [a-z0-9_]+)?\s+([0-9]+(?:\.[0-9]+)+)`)

// driverVersion reads "NVRM version: NVIDIA UNIX [Open] x86_64 Kernel Module  580.159.04  ...".
func driverVersion(text string) string {
	if m := versionIn.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// information reads /proc/driver/nvidia/gpus/<bus>/information: "Key: \t value" lines. A GPU the driver was told to
// exclude, or whose UUID it does not know yet ("GPU-????????-..."), is not one to offer.
func information(text string) (inventory.GPU, bool) {
	g := inventory.GPU{NUMA: -1, Minor: -1}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "Model":
			g.Product = value
		case "GPU UUID":
			g.UUID = value
		case "Bus Location":
			g.Bus = inventory.Bus(value)
		case "Device Minor":
			if m, err := strconv.Atoi(value); err == nil {
				g.Minor = m
			}
		case "GPU Excluded":
			if strings.EqualFold(value, "yes") {
				return g, false
			}
		}
	}
	return g, g.UUID != "" && !strings.Contains(g.UUID, "?")
}

// Place adds what sysfs knows of a GPU's place.
func (s *Source) Place(g *inventory.GPU) {
	dir := filepath.Join(s.Sys, "bus/pci/devices", g.Bus)
	if b, err := os.ReadFile(filepath.Join(dir, "numa_node")); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			g.NUMA = n
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "class")); err == nil {
		g.Mode = map[string]string{"0x030200": "compute", "0x030000": "graphics"}[strings.TrimSpace(string(b))]
	}
	drm, err := os.ReadDir(filepath.Join(dir, "drm"))
	if err != nil {
		return // no DRM driver
	}
	for _, d := range drm {
		g.DRM = append(g.DRM, d.Name())
	}
	slices.Sort(g.DRM)
}

// link compares the paths that sysfs's links lead to: the deeper the common part, the nearer are two devices.
func (s *Source) link(n *inventory.Node) {
	paths := make([][]string, len(n.GPUs))
	for i, g := range n.GPUs {
		if at, err := filepath.EvalSymlinks(filepath.Join(s.Sys, "bus/pci/devices", g.Bus)); err == nil {
			at = at[strings.Index(at, "/devices/")+1:]
			paths[i] = strings.Split(at, "/")
		}
	}
	for i := range n.GPUs {
		for j := range i {
			l := inventory.Link{A: n.GPUs[j].UUID, B: n.GPUs[i].UUID, Path: PCIPath(paths[j], paths[i])}
			if l.Path == inventory.PathSystem && n.GPUs[i].NUMA >= 0 && n.GPUs[i].NUMA == n.GPUs[j].NUMA {
				l.Path = inventory.PathNUMA
			}
			n.Links = append(n.Links, l)
		}
	}
}

// PCIPath classifies two devices by their sysfs paths, "devices", "pci0000:00", bridges, device. Every bridge is two
// components of a switch: one upstream, one down.
func PCIPath(a, b []string) inventory.Path {
	common := 0
	for common < min(len(a), len(b)) && a[common] == b[common] {
		common++
	}
	switch apart := max(len(a), len(b)) - common; {
	case common < 2:
		return inventory.PathSystem // other root complexes, or not known
	case common == 2:
		return inventory.PathBridge // one root complex, several root ports
	case apart <= 2:
		return inventory.PathSwitch
	default:
		return inventory.PathMulti
	}
}

// Sample implements discovery.Source: whether the GPU still answers on its bus, and nothing else. A device that fell
// off reads as all ones.
func (s *Source) Sample(ctx context.Context, t discovery.Target) (health.Sample, error) {
	n, err := s.Inventory(ctx)
	if err != nil {
		return health.Sample{}, err
	}
	g := n.GPU(t.UUID)
	if g == nil {
		return health.Sample{}, errs.NotFound.Errorf("the driver does not list GPU %s", t.UUID)
	}
	return health.Sample{Lost: s.silent(g.Bus), Unread: health.Unread{ECC: true, Remap: true, Links: true, Recovery: true}}, nil
}

// silent reads the vendor id from the device's configuration space; sysfs's own "vendor" is remembered, not read.
func (s *Source) silent(bus string) bool {
	f, err := os.Open(filepath.Join(s.Sys, "bus/pci/devices", bus, "config"))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close() //nolint:errcheck // read only
	var id [4]byte
	if _, err := f.Read(id[:]); err != nil {
		return true
	}
	return binary.LittleEndian.Uint32(id[:]) == 0xffffffff
}

// Processes implements discovery.Source: every process that has the GPU's node open.
func (s *Source) Processes(ctx context.Context, t discovery.Target) ([]discovery.Process, error) {
	n, err := s.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	g := n.GPU(t.UUID)
	if g == nil {
		return nil, errs.NotFound.Errorf("the driver does not list GPU %s", t.UUID)
	}
	node := fmt.Sprintf("/dev/nvidia%d", g.Minor)
	links, err := filepath.Glob(filepath.Join(s.Proc, "[0-9]*/fd/*"))
	if err != nil {
		return nil, err
	}
	var all []discovery.Process
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || to != node {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(strings.TrimPrefix(l, s.Proc), "/")[1])
		if err == nil && !slices.Contains(all, discovery.Process{PID: pid}) {
			all = append(all, discovery.Process{PID: pid})
		}
	}
	return all, nil
}

// Majors reads /proc/devices.
func (s *Source) Majors() (driver.Majors, error) {
	b, err := os.ReadFile(filepath.Join(s.Proc, "devices"))
	if err != nil {
		return driver.Majors{}, err
	}
	return driver.ParseMajors(bytes.NewReader(b))
}
