package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

// canary must never be seen by a host that it is not for.
const canary = "s3cr3t-canary"

// server is a registry made of one handler; it notes who was shown the canary and counts requests.
type server struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests []string
	leaked   []string
}

func newServer(t testing.TB, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
		user, pass, _ := r.BasicAuth()
		if all := fmt.Sprint(r.Header, user, pass, r.URL); strings.Contains(all, canary) {
			s.leaked = append(s.leaked, r.URL.Path)
		}
		s.mu.Unlock()
		h(w, r)
	}))
	s.host = strings.TrimPrefix(s.URL, "http://")
	t.Cleanup(s.Close)
	return s
}

func (s *server) count(prefix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (s *server) sawCanary() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leaked) > 0
}

// testConfig is fast enough for tests.
func testConfig(hostsDir string) registry.Config {
	return registry.Config{HostsDir: hostsDir, Backoff: time.Millisecond, Stall: 300 * time.Millisecond, MinRate: 10_000, MaxRetryAfter: 3 * time.Second}
}

func openRepo(t testing.TB, cfg registry.Config, ref string, cred *registry.Credential) *registry.Repository {
	t.Helper()
	r, err := registry.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := registry.New(cfg).Open(r, cred)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(repo.Close)
	return repo
}

var (
	content = []byte(strings.Repeat("0123456789abcdef", 20_000))
	blob    = ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
)

func fetch(t testing.TB, repo *registry.Repository) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	rc, err := repo.Blob(ctx, blob, 0)
	if err != nil {
		return nil, err
	}
	defer rc.Close() //nolint:errcheck // read side
	return io.ReadAll(rc)
}

// flaky serves content, cut after k bytes each time; ranges says whether it honours Range.
func flaky(k int, ranges bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := 0
		if v := r.Header.Get("Range"); v != "" && ranges {
			start, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(v, "bytes="), "-"))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(content)-1, len(content)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-start))
		if start > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		end := min(start+k, len(content))
		_, _ = w.Write(content[start:end])
		if end < len(content) {
			panic(http.ErrAbortHandler) // resets the connection
		}
	}
}

func TestBlobMisbehaviour(t *testing.T) {
	var once sync.Once
	cases := map[string]struct {
		handler http.HandlerFunc
		want    string // in the error, "" for success
		class   errs.Class
		most    int // requests
	}{
		"plain":         {flaky(1<<30, true), "", "", 1},
		"reset, resume": {flaky(100_000, true), "", "", 4},
		"reset at 0":    {flaky(0, true), registry.Unreachable, errs.Unavailable, 5},
		"resets for ever": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %s%d/%d", strings.TrimPrefix(r.Header.Get("Range"), "bytes="), len(content)-1, len(content)))
				w.Header().Del("Content-Length")
				w.WriteHeader(http.StatusPartialContent)
			}
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "broke 9 times", errs.Unavailable, 9},
		"ignores range": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				flaky(100_000, false)(w, r)
			} else {
				flaky(1<<30, false)(w, r)
			}
		}, "", "", 2},
		"416": {func(w http.ResponseWriter, r *http.Request) {
			first := false
			once.Do(func() { first = true })
			switch {
			case r.Header.Get("Range") != "":
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			case first:
				flaky(100_000, false)(w, r)
			default:
				flaky(1<<30, false)(w, r)
			}
		}, "", "", 3},
		"wrong range": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				flaky(100_000, true)(w, r)
				return
			}
			w.Header().Set("Content-Range", "bytes 7-9/10")
			w.WriteHeader(http.StatusPartialContent)
		}, "does not fit offset", errs.Unavailable, 2},
		"too short": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content[:10]) }, "10 bytes instead of", errs.FailedPrecondition, 1},
		"too long, chunked": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(content)
			_, _ = w.Write([]byte("more"))
		}, "is longer than", errs.FailedPrecondition, 1},
		"404": {http.NotFound, "404", errs.NotFound, 1},
		"403": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "403", errs.PermissionDenied, 1},
		"500 for ever": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
			registry.Unreachable, errs.Unavailable, 5},
		"429 for ever": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
			"429", errs.ResourceExhausted, 5},
		"429, an hour": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}, "429", errs.ResourceExhausted, 1},
		"stalls": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				flaky(1<<30, true)(w, r)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			_, _ = w.Write(content[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "", "", 2},
		"trickles": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				flaky(1<<30, true)(w, r)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			for i := 0; r.Context().Err() == nil; i++ {
				_, _ = w.Write(content[i : i+1])
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, "", "", 2},
		"encoded": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(content)
		}, "unasked content encoding", errs.Unavailable, 1},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
			"more than 5 redirects", errs.Unavailable, 6},
		"redirect to a file": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		}, "is refused", errs.PermissionDenied, 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, c.handler)
			b, err := fetch(t, openRepo(t, testConfig(""), s.host+"/app:1", nil))
			if c.want == "" && (err != nil || digest.FromBytes(b) != blob.Digest) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || errs.Of(err) != c.class) {
				t.Errorf("error %v of class %v, want %q of %v", err, errs.Of(err), c.want, c.class)
			}
			if n := s.count("GET"); n > c.most {
				t.Errorf("%d requests, at most %d expected", n, c.most)
			}
		})
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	n := 0
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if n++; n == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		flaky(1<<30, true)(w, r)
	})
	start := time.Now()
	if _, err := fetch(t, openRepo(t, testConfig(""), s.host+"/app:1", nil)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 900*time.Millisecond {
		t.Errorf("came back after %v", d)
	}
}

func TestUnreachable(t *testing.T) {
	s := newServer(t, http.NotFound)
	s.Close()
	_, err := openRepo(t, testConfig(""), s.host+"/app:1", nil).Resolve(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), registry.Unreachable) || errs.Of(err) != errs.Unavailable {
		t.Errorf("error %v", err)
	}
}

func TestCancelEndsRead(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	repo := openRepo(t, registry.Config{}, s.host+"/app:1", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	rc, err := repo.Blob(ctx, blob, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close() //nolint:errcheck // read side
	if _, err := io.ReadAll(rc); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// bearer is a registry and its token endpoint. It accepts token "good" for blobs.
func bearer(t *testing.T, answer func(r *http.Request) (token string, status int)) *server {
	var s *server
	s = newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/token") {
			token, status := answer(r)
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"token":%q}`, token)
			return
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg",scope="repository:other:push"`, s.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		flaky(1<<30, true)(w, r)
	})
	return s
}

func TestBearer(t *testing.T) {
	for name, c := range map[string]struct {
		cred   *registry.Credential
		answer func(r *http.Request) (string, int)
		class  errs.Class
		most   int
	}{
		"anonymous": {nil, func(r *http.Request) (string, int) {
			if r.URL.Query().Get("scope") != "repository:app:pull" || r.URL.Query().Get("service") != "reg" || r.Header.Get("Authorization") != "" {
				return "", 400
			}
			return "good", 200
		}, "", 1},
		"basic": {&registry.Credential{Username: "u", Password: canary}, func(r *http.Request) (string, int) {
			if u, p, _ := r.BasicAuth(); u != "u" || p != canary {
				return "", 401
			}
			return "good", 200
		}, "", 1},
		"identity token": {&registry.Credential{IdentityToken: canary}, func(r *http.Request) (string, int) {
			if r.Method != http.MethodPost || r.FormValue("grant_type") != "refresh_token" || r.FormValue("refresh_token") != canary {
				return "", 401
			}
			return "good", 200
		}, "", 1},
		"registry token":         {&registry.Credential{RegistryToken: "good"}, func(*http.Request) (string, int) { return "", 500 }, "", 0},
		"registry token refused": {&registry.Credential{RegistryToken: "bad"}, func(*http.Request) (string, int) { return "good", 200 }, errs.Unauthenticated, 0},
		"refused":                {&registry.Credential{Username: "u", Password: "wrong"}, func(*http.Request) (string, int) { return "", 401 }, errs.Unauthenticated, 1},
		"token loop":             {nil, func(*http.Request) (string, int) { return fmt.Sprint(time.Now().UnixNano()), 200 }, errs.Unauthenticated, 2},
		"same token for ever":    {nil, func(*http.Request) (string, int) { return "bad", 200 }, errs.Unauthenticated, 2},
		"no token":               {nil, func(*http.Request) (string, int) { return "", 200 }, errs.Unauthenticated, 1},
		"header injection":       {nil, func(*http.Request) (string, int) { return "a\r\nX: y", 200 }, errs.Unauthenticated, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := bearer(t, c.answer)
			b, err := fetch(t, openRepo(t, testConfig(""), s.host+"/app:1", c.cred))
			if errs.Of(err) != c.class || err == nil && len(b) != len(content) {
				t.Errorf("%d bytes, %v of class %q, want %q", len(b), err, errs.Of(err), c.class)
			}
			if n := s.count("GET /token") + s.count("POST /token"); n > c.most {
				t.Errorf("%d token requests", n)
			}
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Error("the error holds the secret")
			}
		})
	}
}

// TestCredentialsStayHome sends a credential to a registry that redirects, challenges and mirrors elsewhere.
func TestCredentialsStayHome(t *testing.T) {
	evil := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="evil"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	store := newServer(t, flaky(100_000, true))
	target := store.URL
	home := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if _, p, _ := r.BasicAuth(); p != canary {
			w.Header().Set("WWW-Authenticate", `Basic realm="home"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, target+"/store", http.StatusTemporaryRedirect)
	})
	dir := t.TempDir()
	hostsToml(t, dir, home.host, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities=[\"pull\"]\n[host.%q.header]\nx-mirror=\"yes\"\n", home.URL, evil.URL, evil.URL))
	cred := &registry.Credential{Username: "u", Password: canary}
	if b, err := fetch(t, openRepo(t, testConfig(dir), home.host+"/app:1", cred)); err != nil || len(b) != len(content) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	target = evil.URL
	if _, err := fetch(t, openRepo(t, testConfig(""), home.host+"/app:1", cred)); errs.Of(err) != errs.PermissionDenied {
		t.Errorf("error %v", err)
	}
	if !home.sawCanary() {
		t.Error("the registry itself never saw the credential")
	}
	if evil.sawCanary() || store.sawCanary() {
		t.Errorf("the credential leaked: mirror %v, store %v", evil.leaked, store.leaked)
	}
	other := &registry.Credential{Username: "u", Password: canary, ServerAddress: "https://other.example/v1/"}
	if _, err := fetch(t, openRepo(t, testConfig(""), evil.host+"/app:1", other)); errs.Of(err) != errs.Unauthenticated {
		t.Errorf("error %v", err)
	}
	if evil.sawCanary() {
		t.Error("a credential for another server was used")
	}
}

func hostsToml(t testing.TB, dir, host, text string) {
	t.Helper()
	d := filepath.Join(dir, host)
	if err := errors.Join(os.MkdirAll(d, 0o700), os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestMirrors checks order, capabilities, the ns parameter, and that a mirror's failure is no failure.
func TestMirrors(t *testing.T) {
	var ns string
	bad := newServer(t, http.NotFound)
	good := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		ns = r.URL.Query().Get("ns")
		flaky(1<<30, true)(w, r)
	})
	upstream := newServer(t, http.NotFound)
	dir := t.TempDir()
	hostsToml(t, dir, "_default", fmt.Sprintf("server=%q\n[host.%q]\n[host.%q]\n  capabilities = [\"pull\"]\n", upstream.URL, bad.URL, good.URL))
	repo := openRepo(t, testConfig(dir), "registry.example/a/b:1", nil)
	if b, err := fetch(t, repo); err != nil || len(b) != len(content) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if bad.count("GET /v2/a/b/blobs/") != 1 || upstream.count("GET") != 0 || ns != "registry.example" {
		t.Errorf("bad %v upstream %v ns %q", bad.requests, upstream.requests, ns)
	}
	// A tag is not asked of a mirror that may only be pulled from.
	if _, err := repo.Resolve(t.Context()); errs.Of(err) != errs.NotFound || good.count("GET /v2/a/b/manifests") != 0 || upstream.count("GET /v2/a/b/manifests/1") != 1 {
		t.Errorf("error %v, good %v", err, good.requests)
	}
}
