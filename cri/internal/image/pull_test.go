package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/proto/errs"
)

// numbered is a layer that differs from all others.
func numbered(t testing.TB, n int) v1.Layer {
	return layerOf(t, tarOf(t, dir("d", 0o755), file(fmt.Sprintf("d/%d", n), strings.Repeat(fmt.Sprint(n), 50_000))))
}

func blobGets(counts map[string]int) (blobs, most int) {
	for k, n := range counts {
		if strings.HasPrefix(k, "GET ") && strings.Contains(k, "/blobs/") {
			blobs++
			most = max(most, n)
		}
	}
	return blobs, most
}

// TestEachDigestOnce pulls overlapping images from many callers at once and counts what the registry was asked.
func TestEachDigestOnce(t *testing.T) {
	leaks(t)
	h := newHub(t)
	common := []v1.Layer{numbered(t, 1), numbered(t, 2)}
	var refs []string
	for i := range 3 {
		refs = append(refs, h.push(t, fmt.Sprintf("app/%d:1", i), imageOf(t, append(common, numbered(t, 10+i))...)))
	}
	h.reset()
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), refs[i%3], nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all := map[string]int{}
	for k, n := range h.reset() { // by digest, whichever repository was asked
		method, path, _ := strings.Cut(k, " ")
		if !strings.Contains(path, "/blobs/") {
			continue
		}
		all[method+" /blobs/"+path[strings.LastIndexByte(path, '/')+1:]] += n
	}
	if blobs, most := blobGets(all); blobs < 5+3 || most != 1 {
		t.Errorf("%d blobs, one of them %d times: %v", blobs, most, all)
	}
	if n := len(s.List()); n != 3 {
		t.Errorf("%d images", n)
	}
	// Now everything is known: a pull is one HEAD.
	if _, err := s.Pull(t.Context(), refs[0], nil); err != nil {
		t.Fatal(err)
	}
	for k, n := range h.reset() {
		if !strings.HasPrefix(k, "HEAD ") || n != 1 {
			t.Errorf("%d × %s", n, k)
		}
	}
}

// TestCancel checks that a caller leaves at once, that the others are not disturbed, and that the last one's
// leaving stops the work.
func TestCancel(t *testing.T) {
	leaks(t)
	h := newHub(t)
	ref := h.push(t, "slow:1", imageOf(t, numbered(t, 1)))
	gate, seen, gone := make(chan struct{}), make(chan struct{}, 10), make(chan struct{}, 10)
	h.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			seen <- struct{}{}
			select {
			case <-gate:
			case <-r.Context().Done():
				gone <- struct{}{}
			}
		}
		return false
	})
	s := open(t, t.TempDir())
	if _, err := s.Pull(deadline(t, 0), ref, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("already late: %v", err)
	}
	if _, err := s.Pull(deadline(t, 30*time.Millisecond), ref, nil); errs.Of(err) != errs.DeadlineExceeded {
		t.Errorf("late: %v", err)
	}
	<-seen
	<-gone // the request ended with its only caller
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(t.Context(), ref, nil); err != nil {
			t.Errorf("patient: %v", err)
		}
	})
	<-seen
	start := time.Now()
	if _, err := s.Pull(deadline(t, 30*time.Millisecond), ref, nil); errs.Of(err) != errs.DeadlineExceeded || time.Since(start) > 2*time.Second {
		t.Errorf("impatient: %v after %v", err, time.Since(start))
	}
	close(gate)
	wg.Wait()
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestBrokenLayerLeavesNothing checks that no part of an image shows when one layer is wrong, and that the next
// try fetches only what is missing.
func TestBrokenLayerLeavesNothing(t *testing.T) {
	leaks(t)
	h := newHub(t)
	good, bad := numbered(t, 1), numbered(t, 2)
	ref := h.push(t, "app:1", imageOf(t, good, bad))
	badDigest, _ := bad.Digest()
	var once sync.WaitGroup
	once.Add(1)
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, badDigest.String()) {
			once.Wait() // until the other layer is there
			size, _ := bad.Size()
			_, _ = w.Write(make([]byte, size))
			return true
		}
		return false
	})
	root := t.TempDir()
	s := open(t, root)
	go func() {
		defer once.Done()
		for range 500 {
			if m, _ := filepath.Glob(filepath.Join(root, "tmp/*/*/layer")); len(m) == 1 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if _, err := s.Pull(t.Context(), ref, nil); errs.Of(err) != errs.FailedPrecondition || !strings.Contains(err.Error(), badDigest.String()) {
		t.Fatalf("error %v", err)
	}
	if u := s.Usage(); len(s.List()) != 0 || u.Bytes != 0 {
		t.Errorf("%v, %+v", s.List(), u)
	}
	h.set(nil)
	h.reset()
	if _, err := s.Pull(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	goodDigest, _ := good.Digest()
	if n := h.reset()["GET /v2/app/blobs/"+goodDigest.String()]; n != 0 {
		t.Error("the good layer was fetched again")
	}
}

// TestMirrorWithWrongContent checks that wrong bytes from a mirror are replaced by the registry's.
func TestMirrorWithWrongContent(t *testing.T) {
	leaks(t)
	h, mirror := newHub(t), newHub(t)
	img := imageOf(t, numbered(t, 1))
	ref := h.push(t, "app:1", img)
	mirror.push(t, "app:1", img)
	ls, _ := img.Layers()
	d, _ := ls[0].Digest()
	size, _ := ls[0].Size()
	mirror.set(func(w http.ResponseWriter, r *http.Request) bool {
		wrong := strings.HasSuffix(r.URL.Path, d.String())
		if wrong {
			_, _ = w.Write(make([]byte, size))
		}
		return wrong
	})
	hosts := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(hosts, h.host), 0o700))
	must(t, os.WriteFile(filepath.Join(hosts, h.host, "hosts.toml"), fmt.Appendf(nil, "[host.%q]\n", mirror.URL), 0o600))
	s := open(t, t.TempDir(), func(c *image.Config) { c.HostsDir = hosts })
	if _, err := s.Pull(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
}

func TestPullErrors(t *testing.T) {
	h := newHub(t)
	ref := h.push(t, "app:1", imageOf(t, numbered(t, 1)))
	s := open(t, t.TempDir())
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.Contains(r.URL.Path, "/denied/"):
			w.WriteHeader(http.StatusForbidden)
		case strings.Contains(r.URL.Path, "/login/"):
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
		default:
			return false
		}
		return true
	})
	for r, c := range map[string]errs.Class{
		"Not A Reference": errs.InvalidArgument, h.host + "/none:1": errs.NotFound, h.host + "/denied/x": errs.PermissionDenied,
		h.host + "/login/x": errs.Unauthenticated, "127.0.0.1:1/x": errs.Unavailable, h.host + "/app@sha256:" + strings.Repeat("0", 64): errs.NotFound,
	} {
		_, err := s.Pull(t.Context(), r, nil)
		if errs.Of(err) != c {
			t.Errorf("%s: %v of class %v, want %v", r, err, errs.Of(err), c)
		}
		if c == errs.Unavailable && !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
			t.Errorf("%s: %v", r, err)
		}
	}
	if _, err := s.Pull(t.Context(), ref, &image.Auth{Auth: "!"}); errs.Of(err) != errs.InvalidArgument {
		t.Errorf("bad auth: %v", err)
	}
}

// TestIndexAndNames pulls an index, and moves a tag.
func TestIndexAndNames(t *testing.T) {
	h := newHub(t)
	first, second := imageOf(t, numbered(t, 1)), imageOf(t, numbered(t, 2))
	foreign, err := mutate.ConfigFile(imageOf(t, numbered(t, 3)), &v1.ConfigFile{Architecture: "s390x", OS: "linux", RootFS: v1.RootFS{Type: "layers"}})
	must(t, err)
	h.push(t, "app:foreign", foreign)
	h.push(t, "app:plain", first)
	ix := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: first})
	raw, err := ix.RawManifest()
	must(t, err)
	h.pushManifest(t, "app", "1", "application/vnd.oci.image.index.v1+json", raw)
	s := open(t, t.TempDir())
	ref := h.host + "/app:1"
	img, err := s.Pull(t.Context(), ref, nil)
	must(t, err)
	want, _ := first.ConfigName()
	top := h.host + "/app@" + digest.FromBytes(raw).String()
	if img.ID != want.String() || img.Digests[0] != top {
		t.Errorf("image %s %v", img.ID, img.Digests)
	}
	if img, err = s.Pull(t.Context(), h.host+"/app:plain", nil); err != nil || len(img.Tags) != 2 || len(img.Digests) != 2 {
		t.Errorf("the same image by another name: %v, %v", img, err)
	}
	if _, err := s.Pull(t.Context(), h.host+"/app:foreign", nil); errs.Of(err) != errs.NotFound {
		t.Errorf("another platform: %v", err)
	}
	if _, err := s.Pull(t.Context(), top, nil); err != nil {
		t.Errorf("by digest: %v", err)
	}
	h.push(t, "app:1", second)
	moved, err := s.Pull(t.Context(), ref, nil)
	must(t, err)
	old, err := s.Get(img.ID)
	if err != nil || len(old.Tags) != 1 || moved.ID == old.ID || moved.Tags[0] != ref {
		t.Errorf("moved %v, old %v, %v", moved, old, err)
	}
	must(t, s.Remove(t.Context(), h.host+"/app:plain"))
	if _, err := s.Get(top); err == nil {
		t.Error("one name was removed, another is left")
	}
	if n := len(s.List()); n != 1 {
		t.Errorf("%d images", n)
	}
	must(t, s.Remove(t.Context(), "no/such:image"))
}

func TestPinned(t *testing.T) {
	h := newHub(t)
	s := open(t, t.TempDir(), func(c *image.Config) { c.Pinned = []string{h.host + "/pause"} })
	pause, err := s.Pull(t.Context(), h.push(t, "pause:latest", imageOf(t, numbered(t, 1))), nil)
	must(t, err)
	app, err := s.Pull(t.Context(), h.push(t, "team/app:2", imageOf(t, numbered(t, 2))), nil)
	must(t, err)
	if !pause.Pinned || app.Pinned {
		t.Errorf("pause %v, app %v", pause.Pinned, app.Pinned)
	}
	s.SetPolicy([]string{"*/team/*:?", "abc*"}, "")
	if app.Pinned {
		t.Error("an image that was handed out has changed")
	}
	for id, want := range map[string]bool{pause.ID: false, app.ID: true} {
		if img, err := s.Get(id); err != nil || img.Pinned != want {
			t.Errorf("%v, %v", img, err)
		}
	}
}

func TestPreload(t *testing.T) {
	leaks(t)
	h := newHub(t)
	from := open(t, t.TempDir())
	img, err := from.Pull(t.Context(), h.push(t, "library/pre:1", imageOf(t, numbered(t, 1))), nil)
	must(t, err)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "a.tar"))
	must(t, err)
	must(t, from.Export(t.Context(), f, img.Tags))
	must(t, f.Close())
	must(t, os.WriteFile(filepath.Join(dir, "broken.tar.gz"), []byte("junk"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "README"), nil, 0o600))
	root := t.TempDir()
	for round, want := range []int{1, 0} { // removed after the first: not imported again
		s := open(t, root, func(c *image.Config) { c.PreloadDir = dir })
		s.Retain(nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		for i := 0; i < 200 && len(s.List()) != want; i++ {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond)
		if got := len(s.List()); got != want {
			t.Errorf("round %d: %d images, want %d", round, got, want)
		}
		must(t, s.Remove(t.Context(), img.Tags[0]))
		if err := open(t, root).Run(t.Context()); errs.Of(err) != errs.FailedPrecondition {
			t.Errorf("a second process on the same store: %v", err)
		}
		cancel()
		must(t, <-done)
	}
}

func TestDockerArchive(t *testing.T) {
	l := tarOf(t, file("a", "x"))
	conf, err := json.Marshal(map[string]any{"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest.FromBytes(l).String()}}})
	must(t, err)
	list := `[{"Config":"c.json","RepoTags":["my/app:3"],"Layers":["x/layer.tar"]}]`
	arch := func(layer string, extra ...member) []byte {
		return tarOf(t, append([]member{file("manifest.json", list), file("c.json", string(conf)), file("real/layer.tar", layer)}, extra...)...)
	}
	lnk := symlink("x/layer.tar", "../real/layer.tar")
	s := open(t, t.TempDir())
	imgs, err := s.Import(t.Context(), strings.NewReader(string(arch(string(l), lnk))))
	if err != nil || len(imgs) != 1 || imgs[0].Tags[0] != "docker.io/my/app:3" {
		t.Fatalf("%v, %v", imgs, err)
	}
	for name, b := range map[string][]byte{
		"no layer": arch(string(l)), "wrong layer": arch("wrong", lnk), "nothing": tarOf(t), "junk": []byte("junk"),
		"link out": arch(string(l), symlink("x/layer.tar", "/etc/passwd")),
	} {
		s := open(t, t.TempDir())
		if _, err := s.Import(t.Context(), strings.NewReader(string(b))); errs.Of(err) != errs.FailedPrecondition {
			t.Errorf("%s: %v of class %v", name, err, errs.Of(err))
		}
		if len(s.List()) != 0 || s.Usage().Bytes != 0 {
			t.Errorf("%s left something", name)
		}
	}
}
