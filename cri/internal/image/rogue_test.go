package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/proto/errs"
)

var update = flag.Bool("update", false, "write testdata/registry.golden from what happens; review it")

// canary is the password; only the registry that it is for, and the token endpoint that it names, may see it.
const canary = "s3cr3t-canary"

// rogue is a registry with one image of one layer, that behaves but for what a case changes: the handler of a kind of
// request ("manifest", "config", "layer", "token", "other"), the manifest, or what it is made of.
type rogue struct {
	*httptest.Server
	host      string
	bystander *httptest.Server // another host

	config, layer []byte
	rewrite       func(m map[string]any)
	manifest      []byte // made of the others unless a case has set it
	on            map[string]http.HandlerFunc
	auth          bool // the caller has a credential
	hosts         func(x *rogue) string
	limit         int64
	most          int           // requests, of all kinds; default 12
	within        time.Duration // default 5 s

	mu     sync.Mutex
	seen   map[string]int
	leaked []string
}

func newRogue(t *testing.T, edit func(x *rogue)) *rogue {
	t.Helper()
	x := &rogue{on: map[string]http.HandlerFunc{}, seen: map[string]int{}, most: 12, within: 20 * time.Second}
	x.layer = gz(tarOf(t, file("a", strings.Repeat("0123456789abcdef", 4096))))
	x.config = configFor(plainOf(t, x.layer))
	x.Server = httptest.NewServer(http.HandlerFunc(x.serve))
	x.bystander = httptest.NewServer(http.HandlerFunc(x.watch))
	t.Cleanup(func() { x.Close(); x.bystander.Close() })
	x.host = strings.TrimPrefix(x.URL, "http://")
	edit(x)
	if x.manifest == nil {
		x.manifest = x.describe()
	}
	return x
}

func configFor(plain []byte) []byte {
	return fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(plain))
}

func (x *rogue) describe() []byte {
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest,
		"config": descriptor(ociConfig, x.config),
		"layers": []any{descriptor(ociLayer, x.layer)},
	}
	if x.rewrite != nil {
		x.rewrite(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

func descriptor(mediaType string, b []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest.FromBytes(b).String(), "size": len(b)}
}

// kind sorts requests.
func (x *rogue) kind(path string) string {
	switch {
	case strings.Contains(path, "/manifests/"):
		return "manifest"
	case strings.HasSuffix(path, digest.FromBytes(x.config).String()):
		return "config"
	case strings.Contains(path, "/blobs/"):
		return "layer"
	case strings.HasPrefix(path, "/token"):
		return "token"
	}
	return "other"
}

func (x *rogue) serve(w http.ResponseWriter, r *http.Request) {
	kind := x.kind(r.URL.Path)
	x.mu.Lock()
	x.seen[kind]++
	x.mu.Unlock()
	if h := x.on[kind]; h != nil {
		h(w, r)
		return
	}
	x.good(kind, w, r)
}

// good is what an honest registry answers.
func (x *rogue) good(kind string, w http.ResponseWriter, r *http.Request) {
	b := map[string][]byte{"manifest": x.manifest, "config": x.config, "layer": x.layer}[kind]
	if b == nil {
		http.NotFound(w, r)
		return
	}
	if kind == "manifest" {
		w.Header().Set("Content-Type", ociManifest)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// nth counts requests of a kind, from 1.
func (x *rogue) nth(kind string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.seen[kind]
}

// watch is the other host: it serves like the registry, and notes what it must not see.
func (x *rogue) watch(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	body := make([]byte, 4096)
	n, _ := r.Body.Read(body)
	x.mu.Lock()
	x.seen["bystander"]++
	if strings.Contains(fmt.Sprint(r.Header, user, pass, r.URL, string(body[:n])), canary) || r.Header.Get("Authorization") != "" {
		x.leaked = append(x.leaked, r.Method+" "+r.URL.Path)
	}
	x.mu.Unlock()
	if h := x.on["bystander"]; h != nil {
		h(w, r)
		return
	}
	x.good(x.kind(r.URL.Path), w, r)
}

func (x *rogue) requests() (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range x.seen {
		n += k
	}
	return n
}

// pull pulls the image and says what came of it.
func (x *rogue) pull(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	s := open(t, root, func(c *image.Config) {
		c.MaxLayerBytes = x.limit
		if x.hosts != nil {
			c.HostsDir = t.TempDir()
			must(t, os.Mkdir(filepath.Join(c.HostsDir, x.host), 0o700))
			must(t, os.WriteFile(filepath.Join(c.HostsDir, x.host, "hosts.toml"), []byte(x.hosts(x)), 0o600))
		}
	})
	s.Hurry()
	s.Retain(nil)
	var auth *image.Auth
	if x.auth {
		auth = &image.Auth{Username: "user", Password: canary}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	start := time.Now()
	_, err := s.Pull(ctx, x.host+"/app:1", auth)
	if took := time.Since(start); took > x.within {
		t.Errorf("took %v", took)
	}
	if n := x.requests(); n > x.most {
		t.Errorf("%d requests, at most %d: %v", n, x.most, x.seen)
	}
	if len(x.leaked) > 0 {
		t.Errorf("another host saw the credential: %v", x.leaked)
	}
	if strings.Contains(fmt.Sprint(err), canary) {
		t.Error("the error tells the password")
	}
	whole := err == nil
	if whole != (len(s.List()) == 1) {
		t.Errorf("%d images, error %v", len(s.List()), err)
	}
	for _, d := range []string{"images", "layers"} {
		if e, rerr := os.ReadDir(filepath.Join(root, d)); rerr != nil || !whole && len(e) > 0 {
			t.Errorf("%s of a failed pull: %v, %v", d, e, rerr)
		}
	}
	if whole {
		return "pulled"
	}
	return fmt.Sprintf("%s: %s", errs.Of(err), x.normal(err))
}

var (
	reAddr  = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	reBreak = regexp.MustCompile(`(read|write) tcp ADDR->ADDR: (connection reset by peer|broken pipe)|unexpected EOF|\bEOF\b`)
	reTime  = regexp.MustCompile(`for [0-9.]+m?s`)
	rePath  = regexp.MustCompile(`/\S*/hosts\.toml`)
	reByte  = regexp.MustCompile(`at byte \d+`)
)

// normal is an error's text without what differs from run to run.
func (x *rogue) normal(err error) string {
	s := err.Error()
	for from, to := range map[string]string{
		x.host: "REGISTRY", strings.TrimPrefix(x.bystander.URL, "http://"): "OTHER",
		digest.FromBytes(x.layer).String(): "<layer>", digest.FromBytes(x.config).String(): "<config>",
		digest.FromBytes(x.manifest).String(): "<manifest>",
	} {
		s = strings.ReplaceAll(s, from, to)
	}
	s = reBreak.ReplaceAllString(reAddr.ReplaceAllString(s, "ADDR"), "<broken>")
	s = rePath.ReplaceAllString(s, "HOSTS")
	s = reByte.ReplaceAllString(reTime.ReplaceAllString(s, "for T"), "at byte N")
	if len(s) > 500 {
		s = s[:500] + "…"
	}
	return s
}

// TestRogueRegistries pulls from registries that misbehave, each in its own way. What is told stands in
// testdata/registry.golden, word for word. No part of an image shows, requests and time are bounded, and no other host
// sees the credential.
func TestRogueRegistries(t *testing.T) {
	leaks(t)
	golden := map[string]string{}
	b, err := os.ReadFile("testdata/registry.golden")
	if err != nil && !*update {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		name, what, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " => ")
		golden[name] = what
	}
	all := map[string]func(x *rogue){}
	for _, part := range []map[string]func(x *rogue){statusCases(), manifestCases(), configCases(t), layerCases(t), redirectCases(), loginCases(), mirrorCases()} {
		maps.Copy(all, part)
	}
	if len(all) < 100 {
		t.Errorf("%d cases", len(all))
	}
	var mu sync.Mutex
	got := map[string]string{}
	t.Run("all", func(t *testing.T) {
		for name, edit := range all {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				what := newRogue(t, edit).pull(t)
				mu.Lock()
				defer mu.Unlock()
				got[name] = what
				if !*update && what != golden[name] {
					t.Errorf("got  %s\nwant %s", what, golden[name])
				}
			})
		}
	})
	if *update {
		var out strings.Builder
		for _, n := range slices.Sorted(maps.Keys(got)) {
			fmt.Fprintf(&out, "%s => %s\n", n, got[n])
		}
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile("testdata/registry.golden", []byte(out.String()), 0o644))
	}
}
