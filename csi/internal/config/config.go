// Package config is berth-csi's configuration: one TOML file, parsed strictly, with every default in one place.
// It must not import any other package of the program.
package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/berth-project/berth/internal/stricttoml"
)

// Config is the whole configuration. The zero value is not valid; start from [Default].
type Config struct {
	Driver      string  `toml:"driver" comment:"The CSI driver's name, as in StorageClass.provisioner; also the prefix of its topology key."`
	Node        string  `toml:"node" comment:"This node's name in Kubernetes; empty: the host's name."`
	Root        string  `toml:"root" comment:"What survives a reboot: the journal. Volumes are in the pools."`
	State       string  `toml:"state" comment:"What does not: the failpoints file, the debug socket's directory."`
	Socket      string  `toml:"socket" comment:"Unix socket on which CSI is served."`
	Registry    string  `toml:"registration_dir" comment:"The kubelet's plugins_registry; empty: do not register."`
	KubeletDir  string  `toml:"kubelet_dir" comment:"Staging and target paths must lie below it."`
	DebugSocket string  `toml:"debug_socket" comment:"Unix socket for Prometheus metrics, the operator's tables and pprof; empty: none."`
	LogLevel    string  `toml:"log_level" comment:"debug, info, warn or error."`
	MaxVolumes  int64   `toml:"max_volumes" comment:"Volumes that Kubernetes may place on this node; 0: no limit."`
	Cluster     Cluster `toml:"cluster"`
	// Pools are by name, which a StorageClass says in its parameter "pool".
	Pools map[string]Pool `toml:"pools" comment:"Where volumes are. A StorageClass says the name in its parameter \"pool\"."`
}

// Cluster is how the provisioning, resize, snapshot and capacity loops reach Kubernetes.
type Cluster struct {
	Enabled    bool    `toml:"enabled" comment:"Run the loops; false: sidecars do, or nobody."`
	Kubeconfig string  `toml:"kubeconfig" comment:"Empty: the pod's service account."`
	QPS        float32 `toml:"qps" comment:"Requests per second to the API server."`
	Burst      int     `toml:"burst"`
	Workers    int     `toml:"workers" comment:"Claims handled at once."`
	Namespace  string  `toml:"namespace" comment:"Where CSIStorageCapacity objects are made."`
	OrphanAge  string  `toml:"orphan_after" comment:"A volume without a PersistentVolume for so long (Go duration) is reported as an orphan."`
}

// Default is the configuration of an empty file, but for the pools: there is none.
func Default() Config {
	return Config{
		Driver: "csi.berth.dev", Root: "/var/lib/berth-csi", State: "/run/berth-csi",
		Socket: "/var/lib/kubelet/plugins/csi.berth.dev/csi.sock", Registry: "/var/lib/kubelet/plugins_registry",
		KubeletDir: "/var/lib/kubelet", DebugSocket: "/run/berth-csi/debug.sock", LogLevel: "info",
		Cluster: Cluster{QPS: 200, Burst: 400, Workers: 64, Namespace: "kube-system", OrphanAge: "24h"},
		Pools:   map[string]Pool{},
	}
}

// Example is Default with one pool, as it is printed for an operator to change.
func Example() Config {
	c := Default()
	c.Pools["local"] = Pool{Backend: "loop", Path: "/var/lib/berth-csi/local", Overcommit: 1, KeepFree: "1Gi", Default: true}
	return c
}

// Load reads path over the defaults.
func Load(path string) (Config, error) { return stricttoml.Load(path, Parse) }

// Parse reads TOML over the defaults and validates the result. An unknown key is an error that names the nearest
// known one.
func Parse(b []byte) (Config, error) {
	c := Default()
	if err := stricttoml.Decode(b, &c); err != nil {
		return Config{}, err
	}
	for name, p := range c.Pools {
		c.Pools[name] = p.completed()
	}
	return c, c.Validate()
}

// Text is the configuration as a commented TOML file.
func (c Config) Text() (string, error) {
	b, err := toml.Marshal(c)
	return string(b), err
}

var (
	driverName      = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)  // CSI: domain name notation, at most 63
	volumeGroupName = regexp.MustCompile(`^[a-zA-Z0-9_.+][a-zA-Z0-9_.+-]{0,126}$`) // lvm(8): VALID NAMES
	poolName        = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// Validate says everything that is wrong at once.
func (c Config) Validate() error {
	var all []error
	bad := func(key, format string, args ...any) {
		all = append(all, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for _, p := range []struct{ key, path string }{
		{"root", c.Root},
		{"state", c.State},
		{"socket", c.Socket},
		{"kubelet_dir", c.KubeletDir},
		{"registration_dir", c.Registry},
		{"debug_socket", c.DebugSocket},
	} {
		if !filepath.IsAbs(p.path) && (p.path != "" || p.key != "registration_dir" && p.key != "debug_socket") {
			bad(p.key, "%q is not an absolute path", p.path)
		}
	}
	for key, path := range map[string]string{"socket": c.Socket, "debug_socket": c.DebugSocket} {
		if len(path) > 107 {
			bad(key, "%d bytes, a Unix socket path holds 107", len(path))
		}
	}
	if !driverName.MatchString(c.Driver) {
		bad("driver", "%q is no domain name of at most 63 small letters, digits, dots and dashes", c.Driver)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log_level", "%q, want debug, info, warn or error", c.LogLevel)
	}
	if len(c.Pools) == 0 {
		bad("pools", "there is none: add a table [pools.NAME] with backend and path")
	}
	defaults, inline, at := 0, 0, map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Pools)) {
		p := c.Pools[name]
		all = append(all, p.validate(name)...)
		for _, where := range append([]string{p.Where()}, p.Devices...) {
			if other := at[filepath.Clean(where)]; other != "" {
				bad("pools."+name, "%s is pool %s's already", where, other)
			}
			at[filepath.Clean(where)] = name
		}
		if p.Default {
			defaults++
		}
		if p.Ephemeral {
			inline++
		}
	}
	if defaults > 1 {
		bad("pools", "%d say default = true, at most one may", defaults)
	}
	if inline > 1 {
		bad("pools", "%d say ephemeral = true, at most one may: a pod does not choose", inline)
	}
	return errors.Join(append(all, c.Cluster.validate()...)...)
}

func (k Cluster) validate() (all []error) {
	if d, err := time.ParseDuration(k.OrphanAge); err != nil || d <= 0 {
		all = append(all, fmt.Errorf("cluster.orphan_after: %q is no duration like 24h", k.OrphanAge))
	}
	if k.QPS <= 0 || k.Burst < 1 || k.Workers < 1 || k.Workers > 1000 {
		all = append(all, fmt.Errorf("cluster: qps %g, burst %d, workers %d: all must be above 0, workers at most 1000", k.QPS, k.Burst, k.Workers))
	}
	return all
}

// Bytes reads a size like 512, 100Mi or 2Ti; an empty one is 0.
func Bytes(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	digits, shift := text, 0
	for i, unit := range []string{"Ki", "Mi", "Gi", "Ti", "Pi"} {
		if d, ok := strings.CutSuffix(text, unit); ok {
			digits, shift = d, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)>>shift {
		return 0, fmt.Errorf("%q is no size: want a number, or one followed by Ki, Mi, Gi, Ti or Pi", text)
	}
	return n << shift, nil
}
