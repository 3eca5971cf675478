package registry_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/proto/errs"
)

func pemFile(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTLS checks verification, a CA and a client certificate from hosts.toml, and Docker's file names.
func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(flaky(1<<30, true))
	s.Config.ErrorLog = nil
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert} //nolint:gosec // a test server
	s.StartTLS()
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "https://")
	certs := t.TempDir()
	pemFile(t, filepath.Join(certs, "ca.crt"), "CERTIFICATE", s.Certificate().Raw)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pemFile(t, filepath.Join(certs, "node.cert"), "CERTIFICATE", der)
	pemFile(t, filepath.Join(certs, "node.key"), "EC PRIVATE KEY", kder)
	pair := fmt.Sprintf("client=[[%q,%q]]\n", certs+"/node.cert", certs+"/node.key")
	for name, c := range map[string]struct {
		toml string
		ok   bool
	}{
		"ca and client":   {"ca=\"" + certs + "/ca.crt\"\n" + pair, true},
		"unverified":      {"skip_verify=true\n" + pair, true},
		"no ca":           {pair, false},
		"no client":       {"skip_verify=true\n", false},
		"plain http asks": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			scheme := s.URL
			if name == "plain http asks" {
				scheme = "http://" + host
			}
			hostsToml(t, dir, "r.example", fmt.Sprintf("server=%q\n%s", scheme, c.toml))
			b, err := fetch(t, openRepo(t, testConfig(dir), "r.example/app:1", nil))
			if c.ok != (err == nil) || c.ok && len(b) != len(content) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	docker := t.TempDir()
	if err := os.Rename(certs, filepath.Join(docker, host)); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t, openRepo(t, testConfig(docker), host+"/app:1", nil)); err != nil {
		t.Errorf("docker's layout: %v", err)
	}
}

// TestNoDowngrade checks that https never becomes http, neither by a redirect nor by a token endpoint, and that a
// registry which is not loopback is never asked in plain.
func TestNoDowngrade(t *testing.T) {
	plain := newServer(t, func(w http.ResponseWriter, r *http.Request) { flaky(1<<30, true)(w, r) })
	mode := ""
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mode == "redirect" {
			http.Redirect(w, r, plain.URL, http.StatusFound)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", plain.URL+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer s.Close()
	dir := t.TempDir()
	hostsToml(t, dir, "r.example", fmt.Sprintf("server=%q\nskip_verify=true\n", s.URL))
	cred := &registry.Credential{Username: "u", Password: canary}
	for m, want := range map[string]errs.Class{"redirect": errs.PermissionDenied, "token": errs.Unauthenticated} {
		mode = m
		if _, err := fetch(t, openRepo(t, testConfig(dir), "r.example/app:1", cred)); errs.Of(err) != want {
			t.Errorf("%s: %v", m, err)
		}
	}
	if plain.count("GET") != 0 {
		t.Errorf("the plain server was asked: %v", plain.requests)
	}
}

// TestRedirectIsVerified checks that the trust in a loopback registry does not extend to where it points.
func TestRedirectIsVerified(t *testing.T) {
	tls := httptest.NewTLSServer(flaky(1<<30, true))
	defer tls.Close()
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, tls.URL, http.StatusFound) })
	if _, err := fetch(t, openRepo(t, testConfig(""), s.host+"/app:1", nil)); err == nil || !strings.Contains(err.Error(), "verify") {
		t.Errorf("error %v", err)
	}
}

// TestPlainHTTPNeedsAWord checks that a registry elsewhere is not asked in plain, and that the error says what to do.
func TestPlainHTTPNeedsAWord(t *testing.T) {
	s := newServer(t, flaky(1<<30, true))
	dir := t.TempDir()
	hostsToml(t, dir, "r.example", fmt.Sprintf("server=%q", "https://"+s.host))
	if _, err := fetch(t, openRepo(t, testConfig(dir), "r.example/app:1", nil)); err == nil || !strings.Contains(err.Error(), "hosts.toml") || s.count("GET") != 0 {
		t.Errorf("error %v", err)
	}
}

func TestHostsFileErrors(t *testing.T) {
	dir := t.TempDir()
	hostsToml(t, dir, "bad.example", "server = [")
	hostsToml(t, dir, "ca.example", "ca = \"none.crt\"")
	hostsToml(t, dir, "none.example", "server=\"https://127.0.0.1:1\"\ncapabilities=[\"push\"]")
	for ref, want := range map[string]string{"bad.example/a": "hosts.toml", "ca.example/a": "none.crt"} {
		r, err := registry.Parse(ref)
		if err != nil {
			t.Fatal(err)
		}
		_, err = registry.New(testConfig(dir)).Open(r, nil)
		if errs.Of(err) != errs.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	_, err := openRepo(t, testConfig(dir), "none.example/a", nil).Resolve(t.Context())
	if err == nil || errors.Is(err, errs.NotFound) {
		t.Errorf("no host: %v", err)
	}
}
