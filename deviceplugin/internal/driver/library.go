package driver

import (
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// Triplet is the multiarch directory of Debian and its kin.
func Triplet() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64-linux-gnu"
	}
	return "x86_64-linux-gnu"
}

// Program finds one of the driver's programs as this process sees it; where it would be if it is not there.
func Program(root Root, name string) string {
	if at := root.find(programDirs(), name); at != "" {
		return at
	}
	return filepath.Join(root.View, "usr/bin", name)
}

// NVML is the path of libnvidia-ml as this process sees it; "" if it is not there.
func NVML(root Root) string { return root.find(libraryDirs(), "libnvidia-ml.so.1") }

// find is a file in one of some directories, with all links followed inside the root, as this process sees it.
func (r Root) find(dirs []string, name string) string {
	in, err := inroot.Open(r.View)
	if err != nil {
		return "" // Find says so in words
	}
	defer in.Close() //nolint:errcheck // O_PATH
	f := &finder{root: in, host: r.View}
	for _, dir := range dirs {
		if at, ok := f.real(path.Join(dir, name), unix.S_IFREG); ok {
			return at
		}
	}
	return ""
}

// groups says to which capability a library belongs, by the part of its name between "lib" and ".so"; from the
// list in NVIDIA's driver README, "Listing of Installed Components". One that is not here is Graphics.
func groups() map[string]Capability {
	all := map[string]Capability{}
	add := func(c Capability, names ...string) {
		for _, n := range names {
			all[n] = c
		}
	}
	add(Compute, "cuda", "cudadebugger", "nvidia-opencl", "nvidia-gpucomp", "nvidia-ptxjitcompiler", "nvidia-fatbinaryloader",
		"nvidia-allocator", "nvidia-compiler", "nvidia-pkcs11", "nvidia-pkcs11-openssl3", "nvidia-nvvm", "nvidia-nvvm70",
		"nvidia-tileiras", "nvidia-sandboxutils", "nvidia-present")
	add(Utility, "nvidia-ml", "nvidia-cfg", "nvidia-nscq")
	add(Video, "nvcuvid", "nvidia-encode", "nvidia-opticalflow", "vdpau_nvidia")
	return all
}

// wanted says whether a file is a library of the driver's version and of a capability that is wanted.
func wanted(name, version string, caps []Capability) bool {
	stem, ok := strings.CutPrefix(name, "lib")
	if !ok {
		return false
	}
	stem, suffix, ok := strings.Cut(stem, ".so.")
	if !ok {
		return false
	}
	// libnvidia-nvvm70.so.4 is the one library that carries no driver version
	if suffix != version && (stem != "nvidia-nvvm70" || strings.Contains(suffix, ".")) {
		return false
	}
	c, known := groups()[stem]
	if !known {
		c = Graphics
	}
	return slices.Contains(caps, c)
}
