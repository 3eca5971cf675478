// Package gpureal runs Berth on a machine with a real GPU: discovery, the specification of the real driver,
// containers that compute with nothing but that specification, what a container without a request cannot do,
// time-slicing, and an application's fault. e2e/gpu/real.sh calls it; with a profile in place of a GPU it shows its
// own plumbing, and says that it was no GPU.
package gpureal

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image is the one image: a C library, busybox, and the program that adds vectors. It holds nothing of NVIDIA's.
const Image = "registry.k8s.io/berth/cuda:1"

// libraries are what nvidia-smi and libcuda ask for of a C library.
func libraries() []string {
	return []string{"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
}

// WriteImage makes the image of this machine's C library, as an archive for `berth-cri image import`.
func WriteImage(file, busybox, vectoradd string) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin", "lib", "lib/x86_64-linux-gnu", "lib64", "etc", "tmp", "dev", "proc", "sys", "usr", "usr/bin"} {
		if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	files := map[string]string{"bin/busybox": busybox, "usr/bin/vectoradd": vectoradd, "lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2"}
	for _, l := range libraries() {
		files["lib/x86_64-linux-gnu/"+l] = filepath.Join("/lib/x86_64-linux-gnu", l)
	}
	for to, from := range files {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: to, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	for _, applet := range []string{"sh", "sleep", "cat", "ls", "mknod", "rm", "grep", "sed", "env", "awk", "find", "stat"} {
		if err := w.WriteHeader(&tar.Header{Name: path.Join("bin", applet), Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	img, err = mutate.ConfigFile(img, config(img))
	if err != nil {
		return err
	}
	tag, err := name.NewTag(Image)
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return nil
}

// config asks for every GPU, as CUDA images do: it must get none by that.
func config(img v1.Image) *v1.ConfigFile {
	c, err := img.ConfigFile()
	if err != nil {
		c = &v1.ConfigFile{}
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	c.Config.Cmd = []string{"/bin/sleep", "100000"}
	c.Config.Env = []string{"PATH=/usr/bin:/bin", "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"}
	return c
}
