package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The images of the benchmark.
const (
	BenchPod   = "registry.k8s.io/berth/bench:1" // three layers: busybox as /bin/true, /bin/wait, /bin/probe
	BenchBig   = "registry.k8s.io/berth/big:1"   // 8 layers of 256 files of 64 KiB: 128 MiB
	BenchSmall = "registry.k8s.io/berth/small:1" // one layer of 11,500 files of 1 to 23 KiB: 135 MiB
	benchPause = "registry.k8s.io/pause:3.10.1"  // containerd's sandbox image, with a C program as the real one has
	smallFiles = 11500
)

// Bench makes the benchmark's images. wait is a small static program that ends on SIGTERM: the workload of every
// pod, and the pause program of runtimes that have one. testbox is that of the other test images.
func Bench(testbox, wait string) (Set, error) {
	set := Set{}
	if err := set.small(testbox, wait); err != nil {
		return nil, err
	}
	big := make([]v1.Layer, 8)
	errs := make([]error, len(big)+1)
	var small v1.Layer
	var wg sync.WaitGroup
	for i := range big {
		wg.Go(func() { big[i], errs[i] = bulk(uint64(i+1), 256, func(*rand.Rand) int { return 64 << 10 }) })
	}
	wg.Go(func() {
		small, errs[len(big)] = bulk(99, smallFiles, func(r *rand.Rand) int { return 1<<10 + r.IntN(22<<10) })
	})
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	var err error
	if set[BenchBig], err = stack("/bin/true", big...); err != nil {
		return nil, err
	}
	set[BenchSmall], err = stack("/bin/true", small)
	return set, err
}

// small adds the images that pods run.
func (s Set) small(testbox, wait string) error {
	content := map[string][]byte{Busybox: nil, testbox: nil, wait: nil}
	for path := range content {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content[path] = b
	}
	files := []file{{path: "etc/passwd", content: []byte(passwd)}, {path: "etc/group", content: []byte(group)}, {path: "bin/true", content: content[Busybox], mode: 0o755}}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "root"} {
		files = append(files, file{path: d + "/", dir: true, mode: 0o755})
	}
	for ref, layers := range map[string][][]file{
		BenchPod:   {files, {{path: "bin/wait", content: content[wait], mode: 0o755}}, {{path: "bin/probe", content: content[testbox], mode: 0o755}}},
		benchPause: {{{path: "pause", content: content[wait], mode: 0o755}}},
	} {
		var all []v1.Layer
		for _, l := range layers {
			made, err := layer(l)
			if err != nil {
				return err
			}
			all = append(all, made)
		}
		cmd := map[string]string{BenchPod: "/bin/wait", benchPause: "/pause"}[ref]
		img, err := stack(cmd, all...)
		if err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		s[ref] = img
	}
	return nil
}

func stack(cmd string, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", arch()
	cf.Config = v1.Config{Entrypoint: []string{cmd}}
	return mutate.ConfigFile(img, cf)
}

// bulk is a gzip layer of n files in directories of 64, the same bytes on every machine.
func bulk(seed uint64, n int, size func(*rand.Rand) int) (v1.Layer, error) {
	r := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // the same bytes each time are the point
	words := vocabulary(r)
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	when := time.Unix(1700000000, 0)
	for i := range n {
		if i%64 == 0 {
			d := &tar.Header{Name: fmt.Sprintf("usr/lib/l%d/d%d/", seed, i/64), Mode: 0o755, Typeflag: tar.TypeDir, ModTime: when}
			if err := w.WriteHeader(d); err != nil {
				return nil, err
			}
		}
		content := prose(r, words, size(r))
		h := &tar.Header{Name: fmt.Sprintf("usr/lib/l%d/d%d/f%d.so", seed, i/64, i), Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg, ModTime: when}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	b := buf.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
}

// vocabulary is 4,096 strings of 3 to 14 bytes.
func vocabulary(r *rand.Rand) [][]byte {
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+r.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(' ' + r.IntN(95))
		}
	}
	return words
}

// prose is n bytes that gzip makes about 2.4 times smaller, like the programs and libraries that images are made
// of: words, with some noise between them.
func prose(r *rand.Rand, words [][]byte, n int) []byte {
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if r.IntN(12) == 0 {
			for range 12 {
				b = append(b, byte(r.Uint32()))
			}
		}
		b = append(b, words[min(r.IntN(len(words)), r.IntN(len(words)))]...)
	}
	return b[:n]
}
