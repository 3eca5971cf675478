package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/unpacker"
	"github.com/berth-project/berth/cri/internal/unpacker/unpackertest"
)

// member is one entry of a test layer.
type member struct {
	tar.Header
	body string
}

func dir(name string, mode int64) member {
	return member{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: time.Unix(1_600_000_000, 0)}}
}

func file(name, body string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1_600_000_000, 123456789), Format: tar.FormatPAX}, body: body}
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range members {
		if err := w.WriteHeader(&members[i].Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, members[i].body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(t testing.TB, raw []byte, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t testing.TB, ls ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, ls...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// hub is a registry that counts requests and can be told to misbehave.
type hub struct {
	*httptest.Server
	host  string
	inner http.Handler

	mu     sync.Mutex
	counts map[string]int
	before func(w http.ResponseWriter, r *http.Request) bool // true: handled
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{counts: map[string]int{}}
	h.inner = ggcrregistry.New(ggcrregistry.WithReferrersSupport(false), ggcrregistry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.counts[r.Method+" "+r.URL.Path]++
		before := h.before
		h.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		h.inner.ServeHTTP(w, r)
	}))
	h.host = strings.TrimPrefix(h.URL, "http://")
	t.Cleanup(h.Close)
	return h
}

func (h *hub) set(f func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = f
}

// reset forgets counts and returns them.
func (h *hub) reset() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.counts
	h.counts = map[string]int{}
	return c
}

// push stores an image under repo:tag and returns its reference.
func (h *hub) push(t testing.TB, ref string, img v1.Image) string {
	t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		h.pushBlob(t, repo, b)
	}
	conf, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	h.pushBlob(t, repo, conf)
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mt, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	h.pushManifest(t, repo, tag, string(mt), raw)
	return h.host + "/" + ref
}

func (h *hub) pushManifest(t testing.TB, repo, tag, mediaType string, raw []byte) {
	t.Helper()
	h.send(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, mediaType, raw)
}

func (h *hub) pushBlob(t testing.TB, repo string, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	h.send(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	return d
}

func (h *hub) send(t testing.TB, method, path, contentType string, b []byte) {
	t.Helper()
	req, err := http.NewRequest(method, h.URL+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.inner.ServeHTTP(w, req)
	if w.Code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

// configOf is the least configuration of a store below root.
func configOf(root string) image.Config {
	return image.Config{Root: root, Unpacker: unpacker.Config{Program: unpackertest.Program()}}
}

// open opens a service below a directory of the test, and checks at cleanup that nothing is left behind.
func open(t testing.TB, root string, change ...func(*image.Config)) *image.Service {
	t.Helper()
	cfg := configOf(root)
	for _, c := range change {
		c(&cfg)
	}
	s, err := image.Open(cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// leaks checks at cleanup that goroutines and descriptors are as they were. Call it first, so that it runs last.
func leaks(t testing.TB) {
	t.Helper()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	fds, gos := countFDs(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		deadline := time.Now().Add(3 * time.Second)
		for time.Now().Before(deadline) && runtime.NumGoroutine() > gos {
			time.Sleep(10 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > gos {
			buf := make([]byte, 1<<20)
			t.Errorf("%d goroutines, %d at the start:\n%s", n, gos, buf[:runtime.Stack(buf, true)])
		}
		for runtime.GC(); countFDs(t) > fds+2 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			runtime.GC() // stores keep one until they are collected
		}
		if n := countFDs(t); n > fds+2 { // a store keeps one, the poller another
			t.Errorf("%d descriptors, %d at the start", n, fds)
		}
	})
}

func countFDs(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestPullGetUseRemove(t *testing.T) {
	leaks(t)
	h := newHub(t)
	ref := h.push(t, "library/app:1", imageOf(t,
		layerOf(t, tarOf(t, dir("etc", 0o755), file("etc/a", "low"), file("etc/b", "gone"))),
		layerOf(t, tarOf(t, file("etc/.wh.b", ""), file("etc/a", "high")))))
	root := t.TempDir()
	s := open(t, root)
	img, err := s.Pull(context.Background(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{ref, img.ID, strings.TrimPrefix(img.ID, "sha256:"), img.ID[7:17], img.Digests[0]} {
		if got, err := s.Get(r); err != nil || got.ID != img.ID {
			t.Errorf("Get(%q) = %v, %v", r, got, err)
		}
	}
	fs, err := s.Use("c1", img.ID)
	if err != nil || len(fs.Lower) != 3 { // two layers and the fix for etc
		t.Fatalf("Use: %v, %v", fs, err)
	}
	if b, err := os.ReadFile(filepath.Join(fs.Lower[1], "etc/a")); err != nil || string(b) != "high" {
		t.Errorf("content %q, %v", b, err)
	}
	if u := s.Usage(); u.Bytes != 11 || u.Inodes == 0 {
		t.Errorf("usage %+v", u)
	}
	if err := s.Remove(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(img.ID); err == nil || len(s.List()) != 0 {
		t.Error("still there after Remove")
	}
	if _, err := os.Stat(fs.Lower[0]); err != nil {
		t.Error("layers of a used image are gone")
	}
	s.Release("c1")
	if _, err := os.Stat(fs.Lower[0]); err == nil {
		t.Error("layers of a released image are there")
	}
	if u := s.Usage(); u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("usage %+v", u)
	}
}

func slogDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }
