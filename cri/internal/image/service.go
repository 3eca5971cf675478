// Package image is the node's image store: it pulls, lists, removes and lends out images, and knows for every
// name which image it stands for. registry fetches, layers unpacks and keeps the directories; this package owns
// the records that tie names, configs and layers together, and the order in which things become durable: layers
// before the record that needs them.
//
// An image is its config digest, whatever registry it came from. Images handed out are values that never change.
// See docs/design/images.md.
package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/cri/internal/unpacker"
	"github.com/berth-project/berth/internal/lockfile"
	"github.com/berth-project/berth/proto/errs"
)

// Config is what Open needs. Root is required; zero values of the rest mean the default.
type Config struct {
	// Root is where everything is kept, e.g. /var/lib/berth/images.
	Root string
	// HostsDir is a tree of hosts.toml files in containerd's layout, e.g. /etc/berth/certs.d.
	HostsDir string
	// PreloadDir holds archives that are imported once each, when Run starts.
	PreloadDir string
	// Pinned are names, or globs over full names, of images that must not be garbage-collected by the kubelet.
	Pinned []string
	// MaxConcurrentDownloads bounds how many layers are fetched and unpacked at once on this node; default is the
	// number of CPUs, at least 3.
	MaxConcurrentDownloads int
	// StallTimeout is how long a download may stand still before it is resumed; default 30 s.
	StallTimeout time.Duration
	// MinThroughput in bytes/s is what a download must average over StallTimeout; default 1024.
	MinThroughput int64
	// MaxLayerBytes bounds the unpacked size of one layer; default 64 GiB.
	MaxLayerBytes int64
	// Unpacker says what the confined processes are that unpack layers; the zero value is this program.
	Unpacker unpacker.Config
	// UserAgent is sent to registries.
	UserAgent string
}

// Auth is what the kubelet has for one registry.
type Auth struct {
	Username, Password string
	// Auth is base64 of "user:password"; used where Username is empty.
	Auth          string
	ServerAddress string
	// IdentityToken is exchanged for a token at the registry's token endpoint.
	IdentityToken string
	// RegistryToken is sent as the bearer token itself.
	RegistryToken string
}

// Image is an immutable description of one image.
type Image struct {
	// ID is "sha256:" and the digest of the config: the same image has the same ID from any registry.
	ID string
	// Tags and Digests are full names, sorted: "docker.io/library/busybox:1", "docker.io/library/busybox@sha256:…".
	Tags, Digests []string
	// Size is what its layers and config take on disk, in bytes; layers shared with others count here too.
	Size   uint64
	Pinned bool
	Config *ocispec.Image
	// Annotations of the manifest. They come from the image's author: nothing may be decided by them.
	Annotations map[string]string
	// Chain holds the chainID of each layer, bottom first.
	Chain []digest.Digest
}

// Rootfs is what an image contributes to a container's overlay mount.
type Rootfs struct {
	// Lower are directories, topmost layer first; never empty.
	Lower []string
}

// Usage is what images take on disk.
type Usage struct {
	Mountpoint    string
	Bytes, Inodes uint64
	At            time.Time
}

// Service is the image store. All methods may be called at once.
type Service struct {
	cfg      Config
	log      *slog.Logger
	registry *registry.Client
	store    *layers.Store
	unpacker *unpacker.Unpacker
	empty    string // the only lower directory of an image without content
	pulls    group

	// turn is held while a record is written and published: a per-store lock that, unlike mu, is kept across
	// an fsync. It is taken before mu.
	turn chan struct{}

	list atomic.Pointer[[]*Image] // what List returns; replaced, never changed

	mu       sync.Mutex
	pinned   []string
	images   map[string]*entry // by ID, hidden ones too
	names    map[string]string // full tag or digest name -> ID, of visible images
	holders  map[string]string // container -> ID
	retained bool              // every holder there can be is known
	seq      int64             // of the newest record
}

// Open reads and verifies the records below cfg.Root. What is damaged is put into quarantine and is not listed;
// nothing else is affected. Open starts nothing.
func Open(cfg Config, log *slog.Logger) (*Service, error) {
	if !filepath.IsAbs(cfg.Root) {
		return nil, errs.InvalidArgument.Errorf("image root %q must be an absolute path", cfg.Root)
	}
	cfg.MaxConcurrentDownloads = cmp.Or(cfg.MaxConcurrentDownloads, max(3, runtime.NumCPU()))
	store, err := layers.Open(cfg.Root, cfg.MaxConcurrentDownloads, log)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s := &Service{
		cfg: cfg, log: log, store: store, unpacker: unpacker.New(cfg.Unpacker), turn: make(chan struct{}, 1),
		empty: filepath.Join(cfg.Root, "empty"), pinned: cfg.Pinned,
		images: map[string]*entry{}, names: map[string]string{}, holders: map[string]string{},
		registry: registry.New(registry.Config{
			HostsDir: cfg.HostsDir, UserAgent: cfg.UserAgent, Stall: cfg.StallTimeout, MinRate: cfg.MinThroughput, Log: log,
		}),
	}
	for _, d := range []string{recordsDir, configsDir, "empty"} {
		if err := os.MkdirAll(filepath.Join(cfg.Root, d), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if err := os.Chmod(s.empty, 0o755); err != nil { //nolint:gosec // what a container sees as its root
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	// now, for later the disk may be full; and not by opening it: that would give the lock up, see lockfile
	if err := unix.Mknod(s.lockPath(), unix.S_IFREG|0o600, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if !s.sameBoot() {
		store.Suspect()
	}
	s.mu.Lock()
	s.retained = len(s.images) == 0
	s.publish()
	s.mu.Unlock()
	return s, nil
}

// Run imports the preload directory and keeps the store clean, until ctx ends. Only one process may run a store:
// another is errs.FailedPrecondition at once.
func (s *Service) Run(ctx context.Context) error {
	lock, err := s.lock()
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // releases the lock
	s.collect()
	var wg sync.WaitGroup
	var serr error
	wg.Go(func() { serr = s.store.Run(ctx) })
	wg.Go(func() { s.preload(ctx) })
	wg.Go(func() {
		late := time.NewTimer(incompleteGrace)
		defer late.Stop()
		select {
		case <-late.C:
			s.dropIncomplete()
		case <-ctx.Done():
		}
	})
	wg.Wait()
	if err := s.markClean(); err != nil {
		s.log.Warn("clean shutdown not recorded", "err", err)
	}
	return serr
}

func (s *Service) lockPath() string { return filepath.Join(s.cfg.Root, "lock") }

// lock takes the store's lock file for this process.
func (s *Service) lock() (*lockfile.Lock, error) {
	f, err := lockfile.Take(s.lockPath())
	var held *lockfile.Held
	if errors.As(err, &held) {
		return nil, errs.FailedPrecondition.Errorf("image store %s is in use: stop that process first: %w", s.cfg.Root, err)
	} else if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return f, nil
}

// SetPolicy changes what a reload of the configuration may change.
func (s *Service) SetPolicy(pinned []string, hostsDir string) {
	s.registry.SetHostsDir(hostsDir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = pinned
	for _, e := range s.images {
		e.image = s.describe(e)
	}
	s.publish()
}

// Usage is O(1): layers are counted when they come and go.
func (s *Service) Usage() Usage {
	bytes, inodes := s.store.Usage()
	return Usage{Mountpoint: s.cfg.Root, Bytes: bytes, Inodes: inodes, At: time.Now()}
}
