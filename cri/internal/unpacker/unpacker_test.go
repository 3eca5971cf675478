package unpacker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/unpacker"
	"github.com/berth-project/berth/cri/internal/unpacker/unpackertest"
)

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(orphanEnv)); len(args) == 2 {
		orphan(args)
	}
	remove, err := unpackertest.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// simple is an archive of one file.
func simple(t testing.TB, name, body string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1_600_000_000, 0)}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func blobOf(packed, plain []byte) layers.Blob {
	return layers.Blob{Digest: digest.FromBytes(packed), Size: int64(len(packed)), DiffID: digest.FromBytes(plain)}
}

func config() unpacker.Config { return unpacker.Config{Program: unpackertest.Program()} }

// BenchmarkOneFile is what a child costs when there is nothing to do.
func BenchmarkOneFile(b *testing.B) {
	u := unpacker.New(config())
	plain := simple(b, "a", "x")
	packed := gz(plain)
	for range b.N {
		b.StopTimer()
		d := open(b, b.TempDir())
		b.StartTimer()
		if _, err := u.Unpack(context.Background(), d, bytes.NewReader(packed), blobOf(packed, plain), layers.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
