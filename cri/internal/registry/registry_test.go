package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
		"500 for ever": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
			registry.Unreachable, errs.Unavailable, 5,
		},
		"429 for ever": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
			"429", errs.ResourceExhausted, 5,
		},
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
		"redirect loop": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
			"more than 5 redirects", errs.Unavailable, 6,
		},
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
