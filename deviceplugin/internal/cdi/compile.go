// Package cdi writes the Container Device Interface specification (tags.cncf.io/container-device-interface 1.1) of
// a node's GPUs: Compile is pure, Write replaces one file atomically, Verify reads it back and looks at every node
// and file it names.
//
// There is no hook in it. What a hook would do with ldconfig and links is done by mounts: each driver library is
// bound at each of its names, in the directories where glibc's loader looks without a cache, and below
// /usr/local/nvidia. A runtime that knows [LoaderDirectory] may put that directory in front of the image's
// ld.so.cache; one that does not needs neither a cache nor LD_LIBRARY_PATH.
package cdi

import (
	"cmp"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

// Kind is the vendor and class of our devices; a device's full name is Kind=UUID. It is not nvidia.com/gpu, so that
// a file nvidia-ctk once wrote does not clash with ours.
const Kind = "berth.nvidia.com/gpu"

// LoaderDirectory is the specification's annotation that names the directory in the container which holds all
// libraries, for a runtime that merges an ld.so.cache.
const LoaderDirectory = "gpu.berth-project/loader-directory"

// version is the least that has everything used here: annotations came with 0.6.0.
const version = "0.6.0"

// nvidiaDir is where all of the driver is in the container, beside the default directories.
const nvidiaDir = "/usr/local/nvidia"

// Input is all that decides a specification.
type Input struct {
	Node   *inventory.Node
	Majors driver.Majors
	Files  driver.Files
	// Dev is the node's directory of device nodes, "/dev" nearly always.
	Dev string
	// Graphics adds the nodes for rendering and display.
	Graphics bool
}

// Name is a device's full CDI name.
func Name(uuid string) string { return Kind + "=" + uuid }

// Compile makes the specification, with one device for each GPU and each MIG instance. A device whose nodes are not
// known is left out and said in the error; the specification is good without it.
func Compile(in Input) (*specs.Spec, error) {
	spec := &specs.Spec{
		Version: version, Kind: Kind, Annotations: map[string]string{LoaderDirectory: nvidiaDir + "/lib64"},
		ContainerEdits: specs.ContainerEdits{
			// a toolkit's runtime on the same node must not add devices of its own
			Env:    []string{"NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_DRIVER_VERSION=" + in.Node.Driver.Version},
			Mounts: mounts(in.Files),
		},
	}
	spec.ContainerEdits.DeviceNodes = nodes(in.Dev, driver.CommonNodes(in.Majors, in.Graphics))
	var all []error
	for i := range in.Node.GPUs {
		g := &in.Node.GPUs[i]
		own, err := driver.GPUNodes(in.Majors, g, in.Graphics)
		if err != nil {
			all = append(all, err)
			continue
		}
		spec.Devices = append(spec.Devices, device(g.UUID, nodes(in.Dev, own)))
		for _, instance := range g.Instances {
			caps, err := driver.InstanceNodes(in.Majors, instance)
			if err != nil {
				all = append(all, err)
				continue
			}
			spec.Devices = append(spec.Devices, device(instance.UUID, nodes(in.Dev, slices.Concat(own, caps))))
		}
	}
	return spec, errors.Join(all...)
}

func device(uuid string, n []*specs.DeviceNode) specs.Device {
	return specs.Device{Name: uuid, ContainerEdits: specs.ContainerEdits{DeviceNodes: n}}
}

// nodes spells numbers out: a runtime then needs no look at the node, and systemd's reload finds them in the OCI
// spec.
func nodes(dev string, in []driver.Node) (out []*specs.DeviceNode) {
	mode := os.FileMode(0o666)
	for _, n := range in {
		d := &specs.DeviceNode{Path: path.Join("/dev", n.Path), Type: "c", Major: n.Major, Minor: n.Minor, FileMode: &mode, Permissions: "rw"}
		if dev != "/dev" {
			d.HostPath = filepath.Join(dev, n.Path)
		}
		out = append(out, d)
	}
	return out
}

// mounts binds each library at each of its names in each directory, and all other files at their places.
func mounts(f driver.Files) (out []*specs.Mount) {
	bind := func(host, container string, more ...string) {
		out = append(out, &specs.Mount{
			HostPath: host, ContainerPath: container, Type: "bind",
			Options: append([]string{"ro", "nosuid", "nodev", "rbind", "rprivate"}, more...),
		})
	}
	for _, dir := range []string{"/usr/lib/" + driver.Triplet(), "/usr/lib64", nvidiaDir + "/lib64"} {
		for _, l := range f.Libraries {
			for _, name := range l.Names {
				bind(l.Host, path.Join(dir, l.Sub, name))
			}
		}
	}
	for _, p := range f.Programs {
		bind(p.Host, p.Container)
		bind(p.Host, path.Join(nvidiaDir, "bin", path.Base(p.Container)))
	}
	for _, c := range slices.Concat(f.Firmware, f.Config) {
		bind(c.Host, c.Container)
	}
	for _, s := range f.Sockets {
		bind(s.Host, s.Container, "noexec")
	}
	slices.SortStableFunc(out, func(a, b *specs.Mount) int {
		return cmp.Compare(strings.Count(a.ContainerPath, "/"), strings.Count(b.ContainerPath, "/"))
	})
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(m *specs.Mount) bool {
		twice := seen[m.ContainerPath]
		seen[m.ContainerPath] = true
		return twice
	})
}
