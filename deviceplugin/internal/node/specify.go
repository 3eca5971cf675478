package node

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/deviceplugin/internal/cdi"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// specifier keeps the CDI specification on disk what the inventory says. It belongs to Run's goroutine.
type specifier struct {
	cfg Driver
	dir string
	now func() time.Time

	version string // of the driver whose files were looked up
	files   driver.Files
	missing error
	looked  time.Time
	last    cdi.Input
	spec    *specs.Spec
	stamp   string    // of the file that was verified
	checked time.Time // when
	failed  []error
	usable  bool             // the file is there and what all devices share is right
	broken  map[string]error // devices that are not in it, or not right, by UUID
}

// lookAgain is how often files that were not found are looked for again, and those that were are looked at: nobody
// tells of a driver that is removed or a node that is deleted.
const lookAgain = 5 * time.Second

// ensure writes and verifies the specification. While neither the inventory nor the file has changed it does so once in
// lookAgain, and nothing in between.
// The problems it returns hold until they are mended: each call looks again. Afterwards usable and broken say what
// may be given away.
func (s *specifier) ensure(n *inventory.Node) []error {
	s.usable, s.broken = false, nil
	majors, err := s.cfg.Majors()
	if err != nil {
		return []error{fmt.Errorf("device numbers: %w", err)}
	}
	if majors.NVIDIA > 0 && majors.UVM == 0 && slices.Contains(s.cfg.Capabilities, driver.Compute) {
		return []error{errs.FailedPrecondition.Errorf("nvidia-uvm has no major number in /proc/devices and CUDA starts on no GPU without it: load it (modprobe nvidia-uvm)")}
	}
	if n.Driver.Version != s.version || s.missing != nil && s.now().Sub(s.looked) > lookAgain {
		s.files, s.missing = driver.Find(s.cfg.Root, n.Driver.Version, s.cfg.Capabilities)
		s.version, s.looked = n.Driver.Version, s.now()
	}
	if s.missing != nil && !s.cfg.Optional {
		return []error{s.missing}
	}
	in := cdi.Input{Node: n, Majors: majors, Files: s.files, Dev: s.cfg.Dev, Graphics: s.graphics()}
	known := s.spec != nil && len(s.failed) == 0 && reflect.DeepEqual(in, s.last) && s.stamp != "" && s.stamp == stampOf(s.dir)
	if known && s.now().Sub(s.checked) < lookAgain {
		s.usable = true
		return nil
	}
	s.failed = s.write(in)
	return s.failed
}

func (s *specifier) write(in cdi.Input) (problems []error) {
	spec, err := cdi.Compile(in)
	if err != nil {
		problems = append(problems, err)
	}
	if err := driver.EnsureNodes(s.cfg.DevView, nodesOf(spec)); err != nil {
		problems = append(problems, fmt.Errorf("device nodes: %w", err))
	}
	if _, err := cdi.Ensure(s.dir, spec); err != nil {
		return append(problems, err)
	}
	broken, err := cdi.Verify(s.dir, s.view)
	if err != nil {
		s.version = "" // files may have moved: look for them again
		return append(problems, fmt.Errorf("the CDI specification names what is not there: %w", err))
	}
	s.last, s.spec, s.stamp, s.usable, s.broken, s.checked = in, spec, stampOf(s.dir), true, broken, s.now()
	for uuid, err := range broken {
		problems = append(problems, fmt.Errorf("%s: %w", uuid, err))
	}
	return problems
}

// why says why a device cannot be named to a runtime; "" if it can.
func (s *specifier) why(uuid string) string {
	if err := s.broken[uuid]; err != nil {
		return "its CDI device is broken: " + err.Error()
	}
	if s.spec == nil || !slices.ContainsFunc(s.spec.Devices, func(d specs.Device) bool { return d.Name == uuid }) {
		return "it has no CDI device: the problems say why"
	}
	return ""
}

func (s *specifier) graphics() bool {
	for _, c := range s.cfg.Capabilities {
		if c == driver.Graphics {
			return true
		}
	}
	return false
}

// view maps a path of the node to where this process sees it.
func (s *specifier) view(host string) string {
	if rest, ok := strings.CutPrefix(host, s.cfg.Dev+"/"); ok {
		return filepath.Join(s.cfg.DevView, rest)
	}
	if rel, err := filepath.Rel(s.cfg.Root.Host, host); err == nil && filepath.IsLocal(rel) {
		return filepath.Join(s.cfg.Root.View, rel)
	}
	return host
}

// nodesOf lists the device nodes a specification names.
func nodesOf(spec *specs.Spec) (all []driver.Node) {
	edits := []specs.ContainerEdits{spec.ContainerEdits}
	for _, d := range spec.Devices {
		edits = append(edits, d.ContainerEdits)
	}
	seen := map[string]bool{}
	for _, e := range edits {
		for _, n := range e.DeviceNodes {
			if !seen[n.Path] {
				all = append(all, driver.Node{Path: strings.TrimPrefix(n.Path, "/dev/"), Major: n.Major, Minor: n.Minor})
			}
			seen[n.Path] = true
		}
	}
	return all
}

// stampOf tells a file that was replaced or written to; "" for one that is not there.
func stampOf(dir string) string {
	fi, err := os.Stat(filepath.Join(dir, cdi.FileName))
	if err != nil {
		return ""
	}
	return fi.ModTime().Format(time.RFC3339Nano) + fmt.Sprint(fi.Size())
}
