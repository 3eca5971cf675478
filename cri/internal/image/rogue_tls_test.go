package image_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/proto/errs"
)

// certificate makes a self-signed one for 127.0.0.1, but for what edit changes, and writes it where a hosts file can
// name it.
func certificate(t *testing.T, edit func(c *x509.Certificate)) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	edit(c)
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	must(t, err)
	file := filepath.Join(t.TempDir(), "ca.crt")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// TestRogueTLS pulls over TLS that is not what a hosts file says it must be. No credential is shown to a server whose
// certificate was refused, and https never becomes http.
func TestRogueTLS(t *testing.T) {
	leaks(t)
	same := func(*x509.Certificate) {}
	for name, c := range map[string]struct {
		cert   func(c *x509.Certificate)
		conf   func(c *tls.Config)
		ca     bool // the hosts file names the certificate
		answer http.HandlerFunc
		want   string // in the error; empty for an image
		class  errs.Class
	}{
		"good":             {cert: same, ca: true},
		"unknown":          {cert: same, want: "certificate signed by unknown authority", class: errs.Unavailable},
		"expired":          {cert: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }, ca: true, want: "certificate has expired or is not yet valid", class: errs.Unavailable},
		"not yet valid":    {cert: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }, ca: true, want: "not yet valid", class: errs.Unavailable},
		"another address":  {cert: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }, ca: true, want: "certificate is valid for 10.0.0.1, not 127.0.0.1", class: errs.Unavailable},
		"a name only":      {cert: func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"registry.test"} }, ca: true, want: "doesn't contain any IP SANs", class: errs.Unavailable},
		"not for servers":  {cert: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, ca: true, want: "incompatible key usage", class: errs.Unavailable},
		"TLS 1.1":          {cert: same, conf: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, ca: true, want: "protocol version", class: errs.Unavailable},
		"HTTP/2 only":      {cert: same, conf: func(c *tls.Config) { c.NextProtos = []string{"h2"} }, ca: true},
		"wants a client":   {cert: same, conf: func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, ca: true, want: "certificate required", class: errs.Unavailable},
		"redirect to http": {cert: same, ca: true, answer: status(302, "Location", "http://127.0.0.1:1/x"), want: "redirect to http://127.0.0.1:1 is refused", class: errs.PermissionDenied},
		"realm is http":    {cert: same, ca: true, answer: status(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token"`), want: "token endpoint 127.0.0.1:1 is not https", class: errs.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRogue(t, func(x *rogue) { x.on["manifest"] = c.answer })
			shown := false
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				shown = shown || r.Header.Get("Authorization") != ""
				x.serve(w, r)
			}))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			cert, file := certificate(t, c.cert)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} //nolint:gosec // a test's server
			if c.conf != nil {
				c.conf(s.TLS)
			}
			s.StartTLS()
			defer s.Close()
			hosts := t.TempDir()
			host := strings.TrimPrefix(s.URL, "https://")
			must(t, os.Mkdir(filepath.Join(hosts, host), 0o700))
			toml := "server = \"" + s.URL + "\"\n"
			if c.ca {
				toml += "ca = \"" + file + "\"\n"
			}
			must(t, os.WriteFile(filepath.Join(hosts, host, "hosts.toml"), []byte(toml), 0o600))
			svc := open(t, t.TempDir(), func(c *image.Config) { c.HostsDir = hosts })
			svc.Hurry()
			_, err := svc.Pull(t.Context(), host+"/app:1", &image.Auth{RegistryToken: canary})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || errs.Of(err) != c.class) {
				t.Errorf("error %v of class %v, want %q", err, errs.Of(err), c.want)
			}
			if shown != (c.want == "" || c.answer != nil) {
				t.Errorf("credential shown: %v", shown)
			}
		})
	}
}
