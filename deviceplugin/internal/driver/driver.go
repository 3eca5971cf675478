// Package driver finds what belongs to a node's NVIDIA driver: libraries with all their names, programs, firmware,
// configuration, sockets, and the numbers of its device nodes. It reads; nodes that are missing are made by
// [EnsureNodes] alone.
//
// The driver may live anywhere (/, /run/nvidia/driver, /usr/local/nvidia): every path is looked up inside its root,
// as chroot would, by internal/inroot, so that a link in a driver image never leads out of it.
package driver

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// Root is where a driver is.
type Root struct {
	// Host is its path on the node: what a CDI specification names.
	Host string
	// View is where this process sees it; the same as Host unless the program runs in a container.
	View string
}

// Files are what a container needs of a driver. All host paths are real files: no link is left in them.
type Files struct {
	Libraries []Library
	// Programs, Firmware and Config map a path in the container to one on the node.
	Programs, Firmware, Config []File
	// Sockets are paths that are the same on both sides.
	Sockets []File
}

// Library is one shared object.
type Library struct {
	Host string
	// Names are the file names under which programs and loaders ask for it: its own, its SONAME, and the links to
	// it that stand beside it.
	Names []string
	// Sub is the directory below the libraries' ("vdpau"), mostly empty.
	Sub string
}

// File is one file at its two places.
type File struct{ Host, Container string }

// Capability is a group of files, as in NVIDIA_DRIVER_CAPABILITIES.
type Capability string

// The capabilities.
const (
	Compute  Capability = "compute"
	Utility  Capability = "utility"
	Video    Capability = "video"
	Graphics Capability = "graphics"
)

// Capabilities lists them.
func Capabilities() []Capability { return []Capability{Compute, Utility, Video, Graphics} }

// libraryDirs are where drivers put libraries, in the order they are looked at; the last ones are for a root that
// holds nothing but the driver (/usr/local/nvidia).
func libraryDirs() []string {
	var dirs []string
	for _, d := range []string{"usr/lib/" + Triplet(), "usr/lib64", "lib/" + Triplet(), "lib64", "usr/lib", "lib"} {
		dirs = append(dirs, d, path.Join(d, "nvidia/current"))
	}
	return append(dirs, "usr/local/nvidia/lib64", "usr/local/nvidia/lib")
}

func programDirs() []string {
	return []string{"usr/bin", "usr/sbin", "bin", "sbin", "usr/local/nvidia/bin", "usr/lib/nvidia/current"} // the last is Debian's
}

// Find looks for the files of a driver version. A root without libcuda and libnvidia-ml of that version is an error
// that says where was looked; everything else is optional.
func Find(root Root, version string, caps []Capability) (Files, error) {
	var out Files
	r, err := inroot.Open(root.View)
	if err != nil {
		return out, fmt.Errorf("driver root: %w: set driver.root to where the driver is installed", err)
	}
	defer r.Close() //nolint:errcheck // O_PATH
	f := &finder{root: r, host: root.Host, version: version, caps: caps}
	for _, dir := range libraryDirs() {
		for _, sub := range []string{"", "vdpau"} {
			libs, err := f.libraries(dir, sub)
			if err != nil {
				return out, err
			}
			out.Libraries = append(out.Libraries, libs...)
		}
	}
	if !f.has("libcuda.so."+version) && !f.has("libnvidia-ml.so."+version) {
		return out, fmt.Errorf("driver root %s: no libcuda.so.%s and no libnvidia-ml.so.%s in %s: set driver.root to where the libraries of the loaded driver are",
			root.Host, version, version, strings.Join(libraryDirs(), ", "))
	}
	slices.SortFunc(out.Libraries, func(a, b Library) int { return strings.Compare(a.Host, b.Host) })
	out.Programs = f.programs()
	out.Firmware = f.matches("lib/firmware/nvidia/"+version, "gsp", ".bin")
	out.Config = f.config()
	for _, s := range []string{"/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"} {
		if host, ok := f.real(s, unix.S_IFSOCK); ok {
			out.Sockets = append(out.Sockets, File{host, s})
		}
	}
	return out, nil
}

type finder struct {
	root    *inroot.Root
	host    string
	version string
	caps    []Capability
	seen    []string // file names of libraries that were found
}

func (f *finder) has(name string) bool { return slices.Contains(f.seen, name) }

// real is the node's path of a file in the root, with all links followed; ok is false unless it is of the kind.
func (f *finder) real(name string, kind uint32) (string, bool) {
	file, err := f.root.Open(name, unix.O_PATH, 0)
	if err != nil {
		return "", false
	}
	defer file.Close() //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil || st.Mode&unix.S_IFMT != kind {
		return "", false
	}
	// the kernel's own name of what was opened, which is below the root it was opened in
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return "", false
	}
	base, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.root.Fd()))
	if err != nil {
		return "", false
	}
	rel, err := filepath.Rel(base, at)
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.Join(f.host, rel), true
}

func (f *finder) list(dir string) []fs.DirEntry {
	d, err := f.root.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	defer d.Close() //nolint:errcheck // read only
	all, err := d.ReadDir(-1)
	if err != nil {
		return nil
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all
}

// libraries are the driver's in one directory, each file name only the first time it is met.
func (f *finder) libraries(dir, sub string) ([]Library, error) {
	var libs []Library
	entries := f.list(path.Join(dir, sub))
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return wanted(e.Name(), f.version, f.caps) }) {
		return nil, nil // nothing of the driver's: a distribution's directory has thousands of links
	}
	links := map[string][]string{} // a file's real path -> names beside it
	for _, e := range entries {
		if e.Type() == fs.ModeSymlink && strings.Contains(e.Name(), ".so") {
			if host, ok := f.real(path.Join(dir, sub, e.Name()), unix.S_IFREG); ok {
				links[host] = append(links[host], e.Name())
			}
		}
	}
	for _, e := range entries {
		name := e.Name()
		if e.Type() == fs.ModeSymlink || f.has(path.Join(sub, name)) || !wanted(name, f.version, f.caps) {
			continue
		}
		host, ok := f.real(path.Join(dir, sub, name), unix.S_IFREG)
		if !ok {
			continue
		}
		soname, err := f.soname(path.Join(dir, sub, name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", host, err)
		}
		names := append([]string{name, soname}, links[host]...)
		if strings.HasPrefix(name, "libcuda.so.") {
			names = append(names, "libcuda.so") // programs dlopen it, and drivers' packages do not link it
		}
		slices.Sort(names)
		names = slices.DeleteFunc(slices.Compact(names), func(s string) bool { return s == "" })
		libs = append(libs, Library{Host: host, Names: names, Sub: sub})
		f.seen = append(f.seen, path.Join(sub, name))
	}
	return libs, nil
}

// soname reads DT_SONAME; a library without one is asked for by its file's name.
func (f *finder) soname(name string) (string, error) {
	file, err := f.root.Open(name, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // read only
	e, err := elf.NewFile(file)
	if err != nil {
		return "", fmt.Errorf("not a shared library: %w", err)
	}
	s, err := e.DynString(elf.DT_SONAME)
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return "", fmt.Errorf("not a shared library: %w", err)
	}
	if len(s) == 0 {
		return "", nil
	}
	if s[0] != path.Base(s[0]) || !strings.Contains(s[0], ".so") {
		return "", fmt.Errorf("its SONAME is %q, which is no library's name", s[0])
	}
	return s[0], nil
}

func (f *finder) programs() (all []File) {
	for _, p := range []string{
		"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-imex", "nvidia-imex-ctl",
	} {
		for _, dir := range programDirs() {
			if host, ok := f.real(path.Join(dir, p), unix.S_IFREG); ok {
				all = append(all, File{host, "/usr/bin/" + p})
				break
			}
		}
	}
	return all
}

func (f *finder) matches(dir, prefix, suffix string) (all []File) {
	for _, e := range f.list(dir) {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), suffix) {
			if host, ok := f.real(path.Join(dir, e.Name()), unix.S_IFREG); ok {
				all = append(all, File{host, path.Join("/", dir, e.Name())})
			}
		}
	}
	return all
}

// config are the files that tell loaders of OpenCL, Vulkan and EGL about the driver.
func (f *finder) config() (all []File) {
	names := []string{"etc/OpenCL/vendors/nvidia.icd"}
	if slices.Contains(f.caps, Graphics) {
		names = append(
			names, "usr/share/glvnd/egl_vendor.d/10_nvidia.json", "usr/share/nvidia/nvoptix.bin",
			"usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json", "usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
			"etc/vulkan/icd.d/nvidia_icd.json", "etc/vulkan/implicit_layer.d/nvidia_layers.json",
			"usr/share/vulkan/icd.d/nvidia_icd.json", "usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
		)
	}
	for _, n := range names {
		if host, ok := f.real(n, unix.S_IFREG); ok {
			all = append(all, File{host, "/" + n})
		}
	}
	return all
}
