// Package config is berth-gpu's configuration: one TOML file, parsed strictly, with every default in one place. A
// part of it may be overruled for one node by a named override, which a label of the node may choose.
package config

import (
	"github.com/pelletier/go-toml/v2"

	"github.com/berth-project/berth/internal/stricttoml"
)

// Config is the whole configuration. The zero value is not valid; start from [Default].
type Config struct {
	Root        string `toml:"root" comment:"What survives a restart: the cached inventory, health, the ledger."`
	State       string `toml:"state" comment:"What does not: sockets."`
	DebugSocket string `toml:"debug_socket" comment:"Unix socket for /status, Prometheus metrics (/metrics) and pprof; empty: none."`
	Metrics     string `toml:"metrics_address" comment:"host:port where /metrics is served over TCP; empty: nowhere."`
	LogLevel    string `toml:"log_level" comment:"debug, info, warn or error."`
	// Discovery says who is asked.
	Discovery string `toml:"discovery" comment:"auto (nvml, then proc), nvml or proc."`

	Kubelet Kubelet `toml:"kubelet"`
	Driver  Driver  `toml:"driver"`
	CDI     CDI     `toml:"cdi"`
	Health  Health  `toml:"health"`
	Labels  Labels  `toml:"labels"`
	Cluster Cluster `toml:"cluster"`

	MIG       string     `toml:"mig_strategy" comment:"Without [[resources]]: none (whole GPUs), single (instances as nvidia.com/gpu) or mixed (nvidia.com/mig-1g.10gb)."`
	Resources []Resource `toml:"resources" comment:"What is offered; the first that selects a device has it. Without any: by mig_strategy."`
	// Overrides are chosen by the node's label, or by --override.
	Overrides map[string]Override `toml:"overrides" comment:"Named sets of mig_strategy and resources; a node takes one by its label (cluster.override_label) or --override."`
}

// Override replaces what a node offers.
type Override struct {
	MIG       string     `toml:"mig_strategy"`
	Resources []Resource `toml:"resources"`
}

// Kubelet is where the kubelet is.
type Kubelet struct {
	Dir          string `toml:"dir" comment:"The kubelet's root directory."`
	Plugins      string `toml:"device_plugins" comment:"Where its legacy registration is, whatever its root directory."`
	Registration string `toml:"registration" comment:"watcher (plugins_registry), legacy (device-plugins/kubelet.sock) or both."`
	PodResources string `toml:"pod_resources" comment:"Socket of the PodResources API; empty: below dir."`
}

// Driver is where the driver is.
type Driver struct {
	Root         string   `toml:"root" comment:"Where the driver's files are on the node."`
	View         string   `toml:"view" comment:"Where this process sees that directory; empty: the same."`
	Dev          string   `toml:"dev" comment:"The node's device directory."`
	DevView      string   `toml:"dev_view" comment:"Where this process sees it; empty: the same."`
	Proc         string   `toml:"proc" comment:"procfs."`
	Sys          string   `toml:"sys" comment:"sysfs."`
	Capabilities []string `toml:"capabilities" comment:"compute, utility, video, graphics: which of the driver's files containers get."`
}

// CDI is the specification.
type CDI struct {
	Dir         string `toml:"dir" comment:"Where the specification is written; it must not outlive a boot."`
	Annotations bool   `toml:"annotations" comment:"Name devices in annotations too, for runtimes older than the CRI's field."`
}

// Health is the state machine. Times are milliseconds.
type Health struct {
	Poll        int   `toml:"poll_ms" comment:"How often every GPU is looked at."`
	Timeout     int   `toml:"timeout_ms" comment:"How long one look may take."`
	Start       int   `toml:"start_ms" comment:"How long the list of GPUs may take, and how long after our start the driver may not be there: it may have to start up."`
	HoldDown    int   `toml:"hold_down_ms" comment:"How long a GPU is watched before it is healthy again; doubled with each relapse."`
	MaxHoldDown int   `toml:"max_hold_down_ms"`
	Quiet       int   `toml:"quiet_ms" comment:"A serious XID is forgotten after so long without another, where nothing tells of a reset; 0: never."`
	Forget      int   `toml:"forget_ms" comment:"A GPU that is gone stays listed, unhealthy, for so long."`
	Ignore      []int `toml:"ignore_xids"`
	Fatal       []int `toml:"fatal_xids"`
}

// Labels are GPU-feature-discovery's.
type Labels struct {
	File string `toml:"file" comment:"Feature file for node-feature-discovery; empty: none."`
}

// Cluster is what berth-gpu asks the API server for; with neither of the last two it asks nothing.
type Cluster struct {
	Node          string `toml:"node" comment:"This node's name in the API; empty: $NODE_NAME."`
	Kubeconfig    string `toml:"kubeconfig" comment:"How to reach the API server; empty: as a pod does. The kubelet's own will do."`
	OverrideLabel string `toml:"override_label" comment:"Label of the node whose value names one of the overrides, as nvidia.com/device-plugin.config; empty: none is watched."`
	Labels        bool   `toml:"labels" comment:"Keep the feature labels on the node itself, for clusters without node-feature-discovery."`
}

// Asked says whether the API server is asked for anything.
func (c Cluster) Asked() bool { return c.OverrideLabel != "" || c.Labels }

// Resource is one rule.
type Resource struct {
	Name    string  `toml:"name"`
	Select  Select  `toml:"select"`
	Sharing Sharing `toml:"sharing"`
}

// Select are globs; a device fits if it fits one of each list that is not empty.
type Select struct {
	UUID    []string `toml:"uuid"`
	Product []string `toml:"product"`
	Bus     []string `toml:"bus"`
	MIG     []string `toml:"mig"`
}

// Sharing is how one device is given to several containers.
type Sharing struct {
	Strategy string `toml:"strategy"` // exclusive, time-slicing or mps; empty: exclusive
	Replicas int    `toml:"replicas"`
	Policy   string `toml:"policy"` // packed or spread; empty: packed for exclusive, else spread
	// One refuses containers that ask for more than one share; mps always does.
	One bool `toml:"one_per_container"`
	// Memory is an MPS client's, in MiB; 0: its equal part.
	Memory uint64 `toml:"memory_mib"`
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Root: "/var/lib/berth/gpu", State: "/run/berth/gpu", DebugSocket: "/run/berth/gpu/debug.sock", LogLevel: "info", Discovery: "auto",
		Kubelet: Kubelet{Dir: "/var/lib/kubelet", Plugins: "/var/lib/kubelet/device-plugins", Registration: "both"},
		Driver:  Driver{Root: "/", Dev: "/dev", Proc: "/proc", Sys: "/sys", Capabilities: []string{"compute", "utility", "video"}},
		CDI:     CDI{Dir: "/var/run/cdi"},
		Health: Health{
			Poll: 1000, Timeout: 1000, Start: 20_000, HoldDown: 1000, MaxHoldDown: 300_000, Quiet: 600_000, Forget: 600_000,
		},
		MIG: "none", Resources: []Resource{}, Overrides: map[string]Override{},
	}
}

// Load reads path over the defaults. A file that is missing is an error; use Default where none is wanted.
func Load(path string) (Config, error) { return stricttoml.Load(path, Parse) }

// Parse reads TOML over the defaults and validates the result. An unknown key is an error that names the nearest
// known one.
func Parse(b []byte) (Config, error) {
	c := Default()
	if err := stricttoml.Decode(b, &c); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// Text is the configuration as a commented TOML file.
func (c Config) Text() (string, error) {
	b, err := toml.Marshal(c)
	return string(b), err
}
