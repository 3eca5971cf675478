package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

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
