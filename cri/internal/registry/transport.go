package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// isLoopback tells whether a host[:port] can only be this machine.
func isLoopback(addr string) bool {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		name = addr
	}
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// complete fills in what a hosts file left open, from the domain in the reference. Plain http is for loopback
// alone, and there only after https was tried; a hosts file says http explicitly.
func (h *host) complete(domain string) {
	if h.addr != "" {
		return
	}
	h.scheme, h.addr, h.path = "https", domain, "/v2"
	switch {
	case domain == "docker.io":
		h.addr = "registry-1.docker.io"
	case isLoopback(domain):
		if _, port, err := net.SplitHostPort(domain); err == nil && port == "80" {
			h.scheme = "http"
		} else if err == nil && port != "443" {
			h.guess = true
		}
	}
}

// newTransport makes the transport for requests to h; withClient adds its client certificates, which only h
// itself is shown, never a redirect's target. No HTTP/2: one stream per connection downloads faster.
func newTransport(h *host, withClient bool) (*http.Transport, error) {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: h.skipVerify || h.guess && withClient, //nolint:gosec // the operator's word, or loopback
	}
	if len(h.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("system certificates: %w", err)
		}
		for _, f := range h.ca {
			pem, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("ca of %s: %w", h, err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("ca of %s: %s holds no certificate", h, f)
			}
		}
		conf.RootCAs = pool
	}
	if withClient {
		for _, p := range h.client {
			key := p[1]
			if key == "" {
				key = p[0]
			}
			cert, err := tls.LoadX509KeyPair(p[0], key)
			if err != nil {
				return nil, fmt.Errorf("client certificate of %s: %w", h, err)
			}
			conf.Certificates = append(conf.Certificates, cert)
		}
	}
	dial := 10 * time.Second
	if h.dialTimeout > 0 {
		dial = h.dialTimeout
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         128 << 10,
		DisableCompression:     true, // a blob is what its digest says, byte for byte
	}, nil
}

// guessing tries https on a loopback registry that nobody described and remembers if it speaks plain http.
type guessing struct {
	*http.Transport
	plain atomic.Bool
}

// RoundTrip implements http.RoundTripper.
func (g *guessing) RoundTrip(req *http.Request) (*http.Response, error) {
	if !g.plain.Load() {
		resp, err := g.Transport.RoundTrip(req)
		var rec tls.RecordHeaderError
		if err == nil || !errors.As(err, &rec) && !errors.Is(err, http.ErrSchemeMismatch) {
			return resp, err
		}
		g.plain.Store(true)
	}
	again := req.Clone(req.Context())
	again.URL.Scheme = "http"
	return g.Transport.RoundTrip(again)
}
