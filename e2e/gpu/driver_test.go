package gpu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const driverVersion = "580.159.04"

// installDriver makes a driver root as NVIDIA's installer would, of real shared objects that hold nothing.
func installDriver(root string) error {
	libs := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	err := errors.Join(os.MkdirAll(libs, 0o755), os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755),
		os.WriteFile(filepath.Join(root, "usr/bin/nvidia-smi"), []byte("#!/bin/sh\necho NVIDIA-SMI\n"), 0o755))
	for _, stem := range []string{"cuda", "nvidia-ml", "nvidia-ptxjitcompiler", "GLX_nvidia"} {
		soname := "lib" + stem + ".so.1"
		out, gerr := exec.Command("gcc", "-shared", "-nostdlib", "-Wl,-soname,"+soname, "-o", filepath.Join(libs, "lib"+stem+".so."+driverVersion), "-x", "c", "/dev/null").CombinedOutput()
		if gerr != nil {
			err = errors.Join(err, fmt.Errorf("gcc: %w: %s", gerr, out))
		}
		err = errors.Join(err, os.Symlink("lib"+stem+".so."+driverVersion, filepath.Join(libs, soname)))
	}
	return err
}

// mountPaths are where a container has the driver's files, by the design of the specification.
func mountPaths() []string {
	var all []string
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/", "/usr/lib64/", "/usr/local/nvidia/lib64/"} {
		for _, stem := range []string{"cuda", "nvidia-ml", "nvidia-ptxjitcompiler"} { // GLX is graphics
			all = append(all, dir+"lib"+stem+".so.1", dir+"lib"+stem+".so."+driverVersion)
		}
		all = append(all, dir+"libcuda.so")
	}
	return append(all, "/usr/bin/nvidia-smi", "/usr/local/nvidia/bin/nvidia-smi")
}
