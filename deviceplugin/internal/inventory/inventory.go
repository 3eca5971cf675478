// Package inventory is the model of a node's GPUs: what there is, how it is partitioned and how it is connected. It
// is data alone, the same whether NVML, /proc or a profile told it, and it crosses a pipe, a cache file and a
// recording as JSON.
//
// It knows nothing of kubelets, CDI or health and must not import anything but the standard library.
package inventory

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Node is all GPUs of one machine, by index.
type Node struct {
	Driver Driver `json:"driver"`
	// Machine is the firmware's name for the machine, "DGXH100"; empty if unknown.
	Machine string `json:"machine,omitempty"`
	GPUs    []GPU  `json:"gpus"`
	// Links are the connections between pairs of GPUs; a pair that is not named is PathSystem.
	Links []Link `json:"links,omitempty"`
}

// Driver is the kernel driver.
type Driver struct {
	// Version is the driver's, "580.159.04"; its libraries carry it as a suffix.
	Version string `json:"version"`
	// CUDA is the highest CUDA version it serves, "13.0"; empty if only NVML could tell.
	CUDA string `json:"cuda,omitempty"`
}

// GPU is one physical GPU.
type GPU struct {
	// UUID is "GPU-" and 36 hexadecimal digits and dashes, the same for the board's whole life.
	UUID string `json:"uuid"`
	// Index is NVML's order, which follows the bus; it may change with a reboot and names nothing.
	Index int `json:"index"`
	// Minor is that of /dev/nvidia<minor>.
	Minor int `json:"minor"`
	// Bus is the PCI address, "0000:3b:00.0".
	Bus string `json:"bus"`
	// Product is the marketing name, "NVIDIA H100 80GB HBM3".
	Product string `json:"product"`
	// Memory is the frame buffer in bytes; 0 if unknown (only NVML can tell).
	Memory uint64 `json:"memory,omitempty"`
	// Compute is the compute capability, "9.0"; empty if unknown.
	Compute string `json:"compute,omitempty"`
	// NUMA is the node the GPU's bus belongs to, -1 if the machine does not say.
	NUMA int `json:"numa"`
	// Mode is "compute" for a board without a display controller (PCI class 0302), "graphics" for one with (0300).
	Mode string `json:"mode,omitempty"`
	// DRM are the names of its nodes below /dev/dri, "card1" and "renderD129".
	DRM []string `json:"drm,omitempty"`
	// Clique is the part of an NVLink fabric over several nodes that the GPU belongs to, "CLUSTER-UUID.CLIQUE"; mostly empty.
	Clique string `json:"clique,omitempty"`
	// MIG says that the GPU is in MIG mode: it then serves its instances only.
	MIG       bool       `json:"mig,omitempty"`
	Instances []Instance `json:"instances,omitempty"`
}

// Instance is one MIG compute instance.
type Instance struct {
	// UUID is "MIG-" and 36 digits and dashes, the same as long as the instance lives.
	UUID string `json:"uuid"`
	// GI and CI number the GPU instance and the compute instance in it.
	GI int `json:"gi"`
	CI int `json:"ci"`
	// Profile is "1g.10gb", with a "2c." before for a part of a GPU instance and attributes behind ("+me").
	Profile string `json:"profile"`
	// Memory is in bytes.
	Memory uint64 `json:"memory,omitempty"`
	// GICap and CICap are the minors of /dev/nvidia-caps/nvidia-cap<minor> that open the instance.
	GICap int `json:"giCap"`
	CICap int `json:"ciCap"`
	// Engines are what it has to compute with; without any they are unknown (only NVML can tell).
	Engines Engines `json:"engines,omitzero"`
}

// Engines counts what an instance has of each sort.
type Engines struct {
	Multiprocessors int `json:"multiprocessors"`
	Copy            int `json:"copy"`
	Decoder         int `json:"decoder"`
	Encoder         int `json:"encoder"`
	JPEG            int `json:"jpeg"`
	OFA             int `json:"ofa"` // optical flow
}

// Link is a connection between two GPUs, named by their UUIDs.
type Link struct {
	A    string `json:"a"`
	B    string `json:"b"`
	Path Path   `json:"path"`
	// NVLinks counts the NVLink connections between the two, over a switch or not.
	NVLinks int `json:"nvlinks,omitempty"`
}

// Path is the best PCI Express connection of two GPUs, named as in `nvidia-smi topo -m`.
type Path string

// The paths, from near to far.
const (
	PathBoard  Path = "board"  // two GPUs of one board
	PathSwitch Path = "switch" // PIX: one PCIe switch
	PathMulti  Path = "multi"  // PXB: several switches, no host bridge
	PathBridge Path = "bridge" // PHB: the CPU's host bridge
	PathNUMA   Path = "numa"   // NODE: host bridges of one NUMA node
	PathSystem Path = "system" // SYS: between NUMA nodes
)

// Paths lists them from near to far.
func Paths() []Path {
	return []Path{PathBoard, PathSwitch, PathMulti, PathBridge, PathNUMA, PathSystem}
}

// GPU finds a GPU by its UUID, or nil.
func (n *Node) GPU(uuid string) *GPU {
	for i := range n.GPUs {
		if n.GPUs[i].UUID == uuid {
			return &n.GPUs[i]
		}
	}
	return nil
}

// Link is the connection of two GPUs.
func (n *Node) Link(a, b string) Link {
	for _, l := range n.Links {
		if l.A == a && l.B == b || l.A == b && l.B == a {
			return l
		}
	}
	return Link{A: a, B: b, Path: PathSystem}
}

var (
	uuidForm    = regexp.MustCompile(`^(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	busForm     = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	versionForm = regexp.MustCompile(`^[0-9]+(\.[0-9]+){1,3}$`)
	profileForm = regexp.MustCompile(`^([0-9]c\.)?[0-9]g\.[0-9]{1,3}gb([+.-][a-z.+-]{1,16})*$`)
	drmForm     = regexp.MustCompile(`^(card|renderD)[0-9]{1,4}$`)
)

// Clean brings what a driver said into the model's form: control characters become spaces, texts are cut at 128
// runes, hexadecimal digits are lower case, GPUs and instances are in order. It returns what is not of that form
// after it, one text for each GPU or instance that was left out: a name that is not understood never becomes a
// path, a device id or a label.
func (n *Node) Clean() []string {
	var bad []string
	n.Driver.Version, n.Driver.CUDA = Text(n.Driver.Version), Text(n.Driver.CUDA)
	n.Machine = Text(n.Machine)
	if !versionForm.MatchString(n.Driver.Version) {
		if n.Driver.Version != "" {
			bad = append(bad, fmt.Sprintf("driver version %q is none", n.Driver.Version))
		}
		n.Driver.Version = ""
	}
	if n.Driver.CUDA != "" && !versionForm.MatchString(n.Driver.CUDA) {
		bad, n.Driver.CUDA = append(bad, fmt.Sprintf("CUDA version %q is none", n.Driver.CUDA)), ""
	}
	seen := map[string]bool{}
	keep := n.GPUs[:0]
	for _, g := range n.GPUs {
		if why := g.clean(seen); len(why) > 0 {
			bad = append(bad, why...)
		}
		if g.UUID != "" {
			keep = append(keep, g)
		}
	}
	n.GPUs = keep
	slices.SortFunc(n.GPUs, func(a, b GPU) int { return cmp.Or(a.Index-b.Index, strings.Compare(a.UUID, b.UUID)) })
	n.Links = slices.DeleteFunc(n.Links, func(l Link) bool {
		return n.GPU(l.A) == nil || n.GPU(l.B) == nil || l.A == l.B || !slices.Contains(Paths(), l.Path) || l.NVLinks < 0
	})
	return bad
}

// clean empties the UUID of a GPU that cannot be used at all.
func (g *GPU) clean(seen map[string]bool) (bad []string) {
	drop := func(format string, args ...any) []string {
		bad, g.UUID = append(bad, fmt.Sprintf(format, args...)), ""
		return bad
	}
	g.UUID, g.Bus, g.Product = UUID(g.UUID), Bus(g.Bus), Text(g.Product)
	switch {
	case !uuidForm.MatchString(g.UUID) || !strings.HasPrefix(g.UUID, "GPU-"):
		return drop("GPU %d: uuid %q is none", g.Index, g.UUID)
	case seen[g.UUID]:
		return drop("GPU %d: uuid %s is there twice", g.Index, g.UUID)
	case !busForm.MatchString(g.Bus):
		return drop("%s: bus address %q is none", g.UUID, g.Bus)
	case g.Minor < 0 || g.Minor > 254: // 255 is nvidiactl (nvidia-modprobe-utils.h)
		return drop("%s: device minor %d is not in 0..254", g.UUID, g.Minor)
	}
	seen[g.UUID] = true
	if g.NUMA < -1 || g.NUMA > 1<<10 {
		g.NUMA = -1
	}
	if g.Compute != "" && !versionForm.MatchString(g.Compute) {
		bad, g.Compute = append(bad, fmt.Sprintf("%s: compute capability %q is none", g.UUID, Text(g.Compute))), ""
	}
	if g.Mode != "compute" && g.Mode != "graphics" {
		g.Mode = ""
	}
	g.DRM = slices.DeleteFunc(g.DRM, func(s string) bool { return !drmForm.MatchString(s) })
	keep := g.Instances[:0]
	for _, in := range g.Instances {
		in.UUID, in.Profile = UUID(in.UUID), strings.ToLower(Text(in.Profile))
		switch {
		case !uuidForm.MatchString(in.UUID) || !strings.HasPrefix(in.UUID, "MIG-") || seen[in.UUID]:
			bad = append(bad, fmt.Sprintf("%s: MIG uuid %q is none, or there twice", g.UUID, in.UUID))
		case !profileForm.MatchString(in.Profile):
			bad = append(bad, fmt.Sprintf("%s: MIG profile %q is none", in.UUID, in.Profile))
		case in.GI < 0 || in.CI < 0 || in.GICap <= 0 || in.CICap <= 0:
			bad = append(bad, fmt.Sprintf("%s: instance %d/%d has no capability nodes (%d, %d)", in.UUID, in.GI, in.CI, in.GICap, in.CICap))
		default:
			seen[in.UUID] = true
			keep = append(keep, in)
		}
	}
	g.Instances = keep
	slices.SortFunc(g.Instances, func(a, b Instance) int {
		return cmp.Or(a.GI-b.GI, a.CI-b.CI, strings.Compare(a.UUID, b.UUID))
	})
	return bad
}

// Text makes a driver's string printable: control and other invisible characters become single spaces, at most
// 128 runes are kept.
func Text(s string) string {
	s = strings.ToValidUTF8(s, " ")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 128 {
		return strings.TrimSpace(string(r[:128]))
	}
	return s
}

// UUID brings a GPU's or an instance's UUID into one spelling: "GPU-" or "MIG-" and lower-case digits.
func UUID(s string) string {
	s = Text(s)
	if len(s) < 4 {
		return s
	}
	return strings.ToUpper(s[:4]) + strings.ToLower(s[4:])
}

// Bus brings a PCI address into sysfs's spelling: NVML writes an eight-digit domain in upper case.
func Bus(s string) string {
	s = strings.ToLower(Text(s))
	if domain, rest, ok := strings.Cut(s, ":"); ok && len(domain) == 8 && strings.HasPrefix(domain, "0000") {
		return domain[4:] + ":" + rest
	}
	return s
}

// Match says whether a glob (path.Match) fits a name, without regard to case or to spaces against dashes.
func Match(glob, name string) bool {
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), " ", "-") }
	ok, err := path.Match(fold(glob), fold(name))
	return err == nil && ok
}
