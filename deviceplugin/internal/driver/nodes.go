package driver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// Node is a character device that the driver's users open.
type Node struct {
	// Path is below /dev: "nvidia0", "nvidia-caps/nvidia-cap3".
	Path         string
	Major, Minor int64
}

// Majors are the driver's numbers in /proc/devices; all but the first are given out anew at each boot. 0 is a
// module that is not loaded.
type Majors struct {
	NVIDIA int64 `json:"nvidia"`
	UVM    int64 `json:"uvm"`
	Caps   int64 `json:"caps"`
}

// Minors of the nodes that belong to no one GPU (nvidia-modprobe-utils.h).
const (
	minorControl = 255
	minorModeset = 254
	drmMajor     = 226 // include/uapi/linux/major.h calls it DRM_MAJOR
)

// ParseMajors reads /proc/devices.
func ParseMajors(r io.Reader) (Majors, error) {
	var m Majors
	s := bufio.NewScanner(r)
	chars := false
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if strings.HasSuffix(line, ":") {
			chars = strings.HasPrefix(line, "Character")
			continue
		}
		number, name, ok := strings.Cut(line, " ")
		if !ok || !chars {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 32)
		if err != nil || n <= 0 {
			return Majors{}, fmt.Errorf("devices: %q is no major and name", inventory.Text(line))
		}
		switch name {
		case "nvidia", "nvidia-frontend": // the second until R560
			m.NVIDIA = n
		case "nvidia-uvm":
			m.UVM = n
		case "nvidia-caps":
			m.Caps = n
		}
	}
	return m, s.Err()
}

// CommonNodes are those every container with a GPU needs. The modeset node is for graphics alone.
func CommonNodes(m Majors, graphics bool) []Node {
	var nodes []Node
	if m.NVIDIA > 0 {
		nodes = append(nodes, Node{"nvidiactl", m.NVIDIA, minorControl})
		if graphics {
			nodes = append(nodes, Node{"nvidia-modeset", m.NVIDIA, minorModeset})
		}
	}
	if m.UVM > 0 {
		nodes = append(nodes, Node{"nvidia-uvm", m.UVM, 0}, Node{"nvidia-uvm-tools", m.UVM, 1})
	}
	return nodes
}

// GPUNodes are those of one GPU; its DRM nodes are for graphics alone.
func GPUNodes(m Majors, g *inventory.GPU, graphics bool) ([]Node, error) {
	if m.NVIDIA == 0 {
		return nil, errs.FailedPrecondition.Errorf("the driver has no major number in /proc/devices: load its kernel module (modprobe nvidia)")
	}
	nodes := []Node{{fmt.Sprintf("nvidia%d", g.Minor), m.NVIDIA, int64(g.Minor)}}
	if !graphics {
		return nodes, nil
	}
	for _, d := range g.DRM {
		minor, err := strconv.ParseInt(strings.TrimLeft(d, "cardenD"), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: DRM node %q: %w", g.UUID, d, err)
		}
		nodes = append(nodes, Node{"dri/" + d, drmMajor, minor})
	}
	return nodes, nil
}

// InstanceNodes are what opens one MIG instance, beside its GPU's node.
func InstanceNodes(m Majors, in inventory.Instance) ([]Node, error) {
	if m.Caps == 0 {
		return nil, errs.FailedPrecondition.Errorf("%s: the driver has no nvidia-caps in /proc/devices: MIG needs it", in.UUID)
	}
	var nodes []Node
	for _, minor := range []int{in.GICap, in.CICap} {
		nodes = append(nodes, Node{fmt.Sprintf("nvidia-caps/nvidia-cap%d", minor), m.Caps, int64(minor)})
	}
	return nodes, nil
}

// EnsureNodes makes the nodes that are missing in dev, a directory like /dev, and replaces those that have another
// number, which a reboot without a clean /dev leaves behind. On a machine where nothing calls nvidia-modprobe the
// nvidia-uvm nodes are not there until somebody makes them.
func EnsureNodes(dev string, nodes []Node) error {
	var all []error
	for _, n := range nodes {
		if err := ensureNode(filepath.Join(dev, n.Path), n); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

func ensureNode(path string, n Node) error {
	want := unix.Mkdev(uint32(n.Major), uint32(n.Minor)) //nolint:gosec // device numbers
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == want:
		return nil
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFCHR:
		return errs.FailedPrecondition.Errorf("%s is there and is no character device: remove it", path)
	case err == nil:
		if err := os.Remove(path); err != nil {
			return err
		}
	case !errors.Is(err, unix.ENOENT):
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // /dev/nvidia-caps is everybody's
		return err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(want)); err != nil && !errors.Is(err, unix.EEXIST) { //nolint:gosec // a device number
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return os.Chmod(path, 0o666) // the umask; access is the device cgroup's affair
}

// CheckNode says whether a node is what it should be.
func CheckNode(path string, n Node) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(uint32(n.Major), uint32(n.Minor)) { //nolint:gosec // device numbers
		return errs.FailedPrecondition.Errorf("%s is not character device %d:%d", path, n.Major, n.Minor)
	}
	return nil
}
