// Package config is berth-cri's configuration: one TOML file, parsed strictly, with every default in one place.
// It must not import any other package of the daemon.
package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/berth-project/berth/internal/stricttoml"
)

// Config is the whole configuration. The zero value is not valid; start from [Default].
type Config struct {
	// Root holds what survives a reboot (images, records, writable layers); State what does not.
	Root  string `toml:"root" comment:"What survives a reboot: images, records, writable layers."`
	State string `toml:"state" comment:"What does not: sockets, shims, pod files."`
	// Socket is where the CRI is served.
	Socket string `toml:"socket" comment:"Unix socket on which the CRI is served."`
	// DebugSocket serves Prometheus metrics (/metrics), pprof (/debug/pprof) and /timeline.
	DebugSocket string `toml:"debug_socket" comment:"Unix socket for Prometheus metrics and pprof; empty: none."`
	LogLevel    string `toml:"log_level" comment:"debug, info, warn or error."`
	// CDIDirs are where device plugins describe devices (tags.cncf.io/container-device-interface).
	CDIDirs []string `toml:"cdi_dirs" comment:"Directories of CDI specifications; a later one is preferred."`

	Shim    Shim               `toml:"shim"`
	Cgroup  Cgroup             `toml:"cgroup"`
	Image   Image              `toml:"image"`
	Network Network            `toml:"network"`
	Stream  Stream             `toml:"stream"`
	Runtime map[string]Runtime `toml:"runtimes" comment:"RuntimeClass handlers beside the built-in one (empty name and \"berth\"): OCI command line runtimes."`
}

// Shim is how supervisors are run.
type Shim struct {
	Binary  string `toml:"binary" comment:"Path of berth-shim; empty: beside berth-cri."`
	PodsPer int    `toml:"pods_per_shim" comment:"Pods one shim supervises before the next one is started."`
}

// The cgroup drivers: who makes the groups that pods and supervisors are in.
const (
	Cgroupfs = "cgroupfs"
	Systemd  = "systemd"
)

// Cgroup is where groups are made.
type Cgroup struct {
	Driver string `toml:"driver" comment:"cgroupfs, or systemd where systemd manages the tree; the kubelet asks which. Drain the node before a change."`
	Own    string `toml:"own" comment:"Berth's own subtree, outside every pod's, for its shims; with systemd the slice of that name."`
}

// Image is the image service.
type Image struct {
	HostsDir      string        `toml:"hosts_dir" comment:"hosts.toml tree: <dir>/<registry>/hosts.toml."`
	PreloadDir    string        `toml:"preload_dir" comment:"OCI or docker archives here are imported at start."`
	Pinned        []string      `toml:"pinned" comment:"Images (globs) that are never garbage collected."`
	MaxDownloads  int           `toml:"max_concurrent_downloads" comment:"Layers downloaded at once; 0: by the number of cores."`
	StallTimeout  time.Duration `toml:"-"`
	StallSeconds  int           `toml:"stall_seconds" comment:"A download without a byte for so long is resumed on a new connection."`
	MinThroughput int64         `toml:"min_throughput" comment:"Bytes per second below which a download is resumed."`
}

// Network is CNI.
type Network struct {
	ConfDir  string   `toml:"conf_dir" comment:"The first conflist in this directory is the cluster's network; watched."`
	BinDirs  []string `toml:"bin_dirs"`
	CacheDir string   `toml:"cache_dir" comment:"libcni's result cache."`
}

// Stream is the exec, attach and port-forward server.
type Stream struct {
	Address string `toml:"address" comment:"host:port of the streaming server; port 0: any. Loopback unless the kubelet is elsewhere."`
}

// Runtime is one OCI command line runtime.
type Runtime struct {
	Binary string   `toml:"binary" comment:"Absolute path."`
	Args   []string `toml:"args"`
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Root: "/var/lib/berth", State: "/run/berth", Socket: "/run/berth/cri.sock", DebugSocket: "/run/berth/debug.sock",
		LogLevel: "info", CDIDirs: []string{"/etc/cdi", "/var/run/cdi"},
		Shim:   Shim{PodsPer: 128},
		Cgroup: Cgroup{Driver: Cgroupfs, Own: "/berth"},
		Image: Image{
			HostsDir: "/etc/berth/certs.d", PreloadDir: "/var/lib/berth/preload", StallSeconds: 30, MinThroughput: 1024,
		},
		Network: Network{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, CacheDir: "/var/lib/cni"},
		Stream:  Stream{Address: "127.0.0.1:0"},
		Runtime: map[string]Runtime{},
	}
}

// Load reads path over the defaults. A file that is missing is an error; use Default where none is wanted.
func Load(path string) (Config, error) { return stricttoml.Load(path, Parse) }

// Parse reads TOML over the defaults and validates the result. An unknown key is an error that names the
// nearest known one.
func Parse(b []byte) (Config, error) {
	c := Default()
	if err := stricttoml.Decode(b, &c); err != nil {
		return Config{}, err
	}
	c.Image.StallTimeout = time.Duration(c.Image.StallSeconds) * time.Second
	return c, c.Validate()
}

// Text is the configuration as a commented TOML file.
func (c Config) Text() (string, error) {
	b, err := toml.Marshal(c)
	return string(b), err
}

// Validate says everything that is wrong at once.
func (c Config) Validate() error {
	var all []error
	bad := func(key, format string, args ...any) {
		all = append(all, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for key, p := range map[string]string{
		"root": c.Root, "state": c.State, "socket": c.Socket, "cgroup.own": c.Cgroup.Own,
		"network.conf_dir": c.Network.ConfDir, "network.cache_dir": c.Network.CacheDir, "image.hosts_dir": c.Image.HostsDir,
	} {
		if !filepath.IsAbs(p) {
			bad(key, "%q is not an absolute path", p)
		}
	}
	for _, p := range c.CDIDirs {
		if !filepath.IsAbs(p) {
			bad("cdi_dirs", "%q is not an absolute path", p)
		}
	}
	if len(c.Socket) > 107 {
		bad("socket", "%d bytes, a Unix socket path holds 107", len(c.Socket))
	}
	if c.Root == c.State {
		bad("state", "must differ from root: it is removed at reboot")
	}
	if c.Shim.PodsPer < 1 || c.Shim.PodsPer > 1024 {
		bad("shim.pods_per_shim", "%d, want 1 to 1024", c.Shim.PodsPer)
	}
	if c.Cgroup.Driver != Cgroupfs && c.Cgroup.Driver != Systemd {
		bad("cgroup.driver", "%q, want cgroupfs or systemd", c.Cgroup.Driver)
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		bad("log_level", "%q, want debug, info, warn or error", c.LogLevel)
	}
	for name, r := range c.Runtime {
		if name == "" || name == "berth" {
			bad("runtimes", "%q is the built-in handler's name", name)
		}
		if !filepath.IsAbs(r.Binary) {
			bad("runtimes."+name+".binary", "%q is not an absolute path", r.Binary)
		}
	}
	return errors.Join(all...)
}
