package image_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// benchLayers makes n gzip layers of files*size bytes that compress to about half.
func benchLayers(b *testing.B, n, files, size int) v1.Image {
	b.Helper()
	var ls []v1.Layer
	for l := range n {
		rng := rand.New(rand.NewPCG(1, uint64(l)))
		members := []member{dir(fmt.Sprintf("l%d", l), 0o755)}
		for f := range files {
			buf := make([]byte, size)
			for i := range buf {
				if i%64 < 32 {
					buf[i] = byte(rng.Uint32())
				} else {
					buf[i] = byte('a' + i%16)
				}
			}
			members = append(members, file(fmt.Sprintf("l%d/f%d", l, f), string(buf)))
		}
		ls = append(ls, layerOf(b, tarOf(b, members...)))
	}
	return imageOf(b, ls...)
}

// BenchmarkPull pulls 8 gzip layers of 16 MiB, 256 files each, from a registry in this process.
func BenchmarkPull(b *testing.B) {
	h := newHub(b)
	ref := h.push(b, "bench/pull:1", benchLayers(b, 8, 256, 64<<10))
	b.SetBytes(128 << 20)
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		root, err := os.MkdirTemp(os.Getenv("BENCH_ROOT"), "pull-*")
		if err != nil {
			b.Fatal(err)
		}
		s := open(b, root)
		b.StartTimer()
		if _, err := s.Pull(context.Background(), ref, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(root); err != nil {
			b.Fatal(err)
		}
	}
}
