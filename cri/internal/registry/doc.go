// Package registry is a client of the OCI distribution protocol (distribution-spec 1.1) for pulling: it resolves
// a reference through the hosts that a node's hosts.toml names, authenticates, and streams blobs that survive
// broken connections.
//
// It owns what go-containerregistry does not give: credentials bound to the host they are for, redirects that
// carry none, resume by Range under a running hash, a floor for throughput, and error classes a kubelet can act
// on. It keeps nothing on disk, caches nothing between pulls, and must not import image or layers.
package registry

import (
	"cmp"
	"log/slog"
	"sync"
	"time"
)

// Limits that are part of the trust boundary, in bytes or counts.
const (
	// MaxManifest is the most that is read of a manifest or an index.
	MaxManifest = 4 << 20
	// MaxConfig is the most that is read of an image config.
	MaxConfig = 8 << 20
	// MaxLayers is the most layers an image may have: overlayfs takes 500 lower directories.
	MaxLayers = 250
	// maxIndexDepth is how many indexes may be nested.
	maxIndexDepth = 3
	// maxRedirects is how many hops one request may take.
	maxRedirects = 5
)

// Config is what a Client needs to know. The zero value works.
type Config struct {
	// HostsDir is a tree of <host[:port]>/hosts.toml files in containerd's layout; empty means none.
	HostsDir string
	// UserAgent is sent with every request.
	UserAgent string
	// Stall is how long a body may send nothing before the connection is given up and resumed; default 30 s.
	Stall time.Duration
	// MinRate is the least bytes per second that a body must average over a Stall-long wait; default 1024.
	MinRate int64
	// Attempts is how often one request is tried on one host; default 5.
	Attempts int
	// Backoff is the pause before the second try; it doubles, with jitter, up to 10 s. Default 200 ms.
	Backoff time.Duration
	// MaxRetryAfter is the longest Retry-After that is waited for; a longer one fails the request. Default 60 s.
	MaxRetryAfter time.Duration
	// Log takes warnings about hosts files; default is to drop them.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	c.UserAgent = cmp.Or(c.UserAgent, "berth-cri")
	c.Stall = cmp.Or(c.Stall, 30*time.Second)
	c.MinRate = cmp.Or(c.MinRate, 1024)
	c.Attempts = cmp.Or(c.Attempts, 5)
	c.Backoff = cmp.Or(c.Backoff, 200*time.Millisecond)
	c.MaxRetryAfter = cmp.Or(c.MaxRetryAfter, time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Client makes Repositories. It holds no connections itself.
type Client struct {
	mu       sync.Mutex
	cfg      Config
	hostsDir string
}

// New returns a client.
func New(cfg Config) *Client {
	cfg.setDefaults()
	return &Client{cfg: cfg, hostsDir: cfg.HostsDir}
}

// SetHostsDir changes the hosts tree for repositories opened from now on. The files themselves are read by every
// Open, so that an edit needs no reload.
func (c *Client) SetHostsDir(dir string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hostsDir = dir
}

func (c *Client) currentHostsDir() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hostsDir
}
