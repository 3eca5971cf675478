// Package netdconf is berth-netd's configuration: one YAML file, read strictly, with every default in one place.
package netdconf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/berth-project/berth/cni/internal/strictyaml"
)

// Config is the whole configuration. The zero value is not valid; start from [Default].
type Config struct {
	// Node is this node's name in the fabric; empty: the host's name.
	Node string `yaml:"node"`
	// Fabric is the file with pools and nodes, watched; empty where Kubernetes is the source.
	Fabric string `yaml:"fabric"`
	// Kubernetes is the other source.
	Kubernetes Kubernetes `yaml:"kubernetes"`
	// State holds what need not survive a reboot: the socket, the lock, failpoints.
	State string `yaml:"state"`
	// Root holds what must: the snapshot of the last good fabric.
	Root string `yaml:"root"`
	// CNI says where the configuration for the runtime is written.
	CNI CNI `yaml:"cni"`
	// Checksums is auto, software or device: who computes those of packets in VXLAN. Auto asks other nodes' agents
	// whether what the device computes arrives.
	Checksums string `yaml:"checksums"`
	// BGP names the speaker's program and its user.
	BGP BGP `yaml:"bgp"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"logLevel"`
}

// Kubernetes is how the API server is reached.
type Kubernetes struct {
	Enabled bool `yaml:"enabled"`
	// Kubeconfig is a file; empty: the pod's service account.
	Kubeconfig string `yaml:"kubeconfig"`
	// Flannel reads and writes flannel's node annotations and takes over its devices, so that a cluster can move from
	// it node by node.
	Flannel bool `yaml:"flannel"`
	// FlannelNetwork is flannel's "Network", the pool of nodes that have no NetworkPool object.
	FlannelNetwork []string `yaml:"flannelNetwork"`
	// FlannelBackend is flannel's "Backend.Type": vxlan or host-gw.
	FlannelBackend string `yaml:"flannelBackend"`
	// ASN, Topology and PasswordFile are BGP's for the whole cluster; see the fabric's bgp.
	ASN          uint32 `yaml:"asn"`
	Topology     string `yaml:"topology"`
	PasswordFile string `yaml:"passwordFile"`
	// Reflectors are labels of the nodes that reflect; none: three are elected where some are needed.
	Reflectors map[string]string `yaml:"reflectors"`
	// ServiceRanges are where the addresses of Services lie that are told by BGP, each while it has an endpoint; others
	// never are. WholeRanges, each inside one of them, are told as a whole, by every node, always.
	ServiceRanges []string `yaml:"serviceRanges"`
	WholeRanges   []string `yaml:"wholeRanges"`
}

// CNI is what is written for the container runtime.
type CNI struct {
	// Dir is the runtime's configuration directory; empty: nothing is written.
	Dir string `yaml:"dir"`
	// File is the name in it.
	File string `yaml:"file"`
	// Network is the network's name, part of the plugin's records.
	Network string `yaml:"network"`
	// StateDir is the plugin's; empty: its default.
	StateDir string `yaml:"stateDir"`
	// ImportHostLocal are lease directories of an earlier plugin.
	ImportHostLocal []string `yaml:"importHostLocal"`
	// Resident has berth-cri ask this process instead of executing the plugin, which takes a fraction of the time. Other
	// runtimes go on executing it.
	Resident bool `yaml:"resident"`
}

// BGP is how the speaker is run.
type BGP struct {
	// Program is berth-bgp's path.
	Program string `yaml:"program"`
	// UID is whom it runs as; no other program's, and not 0.
	UID uint32 `yaml:"uid"`
}

// Values of [Config.Checksums].
const (
	Auto     = "auto"
	Software = "software"
	Device   = "device"
)

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Fabric: "/etc/berth/fabric.yaml", State: "/run/berth/netd", Root: "/var/lib/berth/netd", LogLevel: "info", Checksums: Auto,
		Kubernetes: Kubernetes{FlannelBackend: "vxlan"},
		CNI:        CNI{Dir: "/etc/cni/net.d", File: "10-berth.conflist", Network: "podnet", Resident: true},
		BGP:        BGP{Program: "/usr/bin/berth-bgp", UID: 64179},
	}
}

// Load reads path over the defaults.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads YAML over the defaults and validates the result.
func Parse(b []byte) (Config, error) {
	c := Default()
	if err := strictyaml.Decode(b, &c); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// Validate says everything that is wrong at once.
func (c Config) Validate() error {
	var all []error
	bad := func(key, format string, args ...any) {
		all = append(all, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for _, p := range []struct {
		key, path string
		empty     bool
	}{
		{"fabric", c.Fabric, c.Kubernetes.Enabled},
		{"state", c.State, false},
		{"root", c.Root, false},
		{"cni.dir", c.CNI.Dir, true},
		{"cni.stateDir", c.CNI.StateDir, true},
		{"bgp.program", c.BGP.Program, true},
		{"kubernetes.kubeconfig", c.Kubernetes.Kubeconfig, true},
	} {
		if !filepath.IsAbs(p.path) && (p.path != "" || !p.empty) {
			bad(p.key, "%q is not an absolute path", p.path)
		}
	}
	if len(c.Socket()) > 107 {
		bad("state", "%s is %d bytes long, a Unix socket path holds 107", c.Socket(), len(c.Socket()))
	}
	if c.CNI.Dir != "" && (c.CNI.File == "" || filepath.Base(c.CNI.File) != c.CNI.File || c.CNI.Network == "") {
		bad("cni", "file %q must be a file's name and network %q a network's", c.CNI.File, c.CNI.Network)
	}
	if c.BGP.UID == 0 {
		bad("bgp.uid", "0: what parses peers' messages does not run as root")
	}
	if b := c.Kubernetes.FlannelBackend; b != "vxlan" && b != "host-gw" {
		bad("kubernetes.flannelBackend", "%q, want vxlan or host-gw", b)
	}
	for i, n := range c.Kubernetes.FlannelNetwork {
		if _, err := netip.ParsePrefix(n); err != nil {
			bad(fmt.Sprintf("kubernetes.flannelNetwork[%d]", i), "%v", err)
		}
	}
	if !slices.Contains([]string{Auto, Software, Device}, c.Checksums) {
		bad("checksums", "%q, want auto, software or device", c.Checksums)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("logLevel", "%q, want debug, info, warn or error", c.LogLevel)
	}
	return errors.Join(all...)
}

// Socket is where status, traces and metrics are asked for.
func (c Config) Socket() string { return filepath.Join(c.State, "netd.sock") }

// CNISocket is where a runtime has the plugin's work done, if it is to.
func (c Config) CNISocket() string {
	if !c.CNI.Resident || c.CNI.Dir == "" {
		return ""
	}
	return filepath.Join(c.State, "cni.sock")
}

// Text is the configuration as YAML with a comment for each key.
func (c Config) Text() (string, error) {
	var doc yaml.Node
	if err := doc.Encode(c); err != nil {
		return "", err
	}
	comment(&doc, "", comments())
	b, err := yaml.Marshal(&doc)
	return string(b), err
}

func comment(n *yaml.Node, path string, text map[string]string) {
	for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		key := path + n.Content[i].Value
		n.Content[i].HeadComment = text[key]
		comment(n.Content[i+1], key+".", text)
	}
}

func comments() map[string]string {
	return map[string]string{
		"node":                      "This node's name in the fabric; empty: the host's name.",
		"fabric":                    "Pools and nodes, watched; not read where Kubernetes is the source.",
		"kubernetes":                "The other source: nodes, pools and peers from the API server.",
		"kubernetes.kubeconfig":     "Empty: the pod's service account.",
		"kubernetes.flannel":        "Read and write flannel's annotations and take over its devices.",
		"kubernetes.flannelNetwork": "Flannel's networks, where no NetworkPool object says others.",
		"kubernetes.flannelBackend": "Flannel's backend: vxlan or host-gw.",
		"kubernetes.asn":            "BGP's autonomous system; 0: 64512.",
		"kubernetes.topology":       "BGP between nodes: mesh, reflectors or none; empty: a mesh up to 100 nodes.",
		"kubernetes.passwordFile":   "The key of BGP sessions between nodes.",
		"kubernetes.reflectors":     "Labels of the nodes that reflect routes; none: three are elected where some are needed.",
		"kubernetes.serviceRanges":  "Addresses of Services in these networks are told by BGP while they have an endpoint; others never.",
		"kubernetes.wholeRanges":    "Networks inside of those that every node tells as a whole.",
		"state":                     "What need not survive a reboot: socket, lock.",
		"root":                      "What must: the last good fabric.",
		"cni":                       "The configuration that is written for the runtime once pods can be served.",
		"cni.dir":                   "Empty: none is written.",
		"cni.stateDir":              "The plugin's records; empty: its default.",
		"cni.importHostLocal":       "Lease directories of an earlier plugin.",
		"cni.resident":              "berth-cri asks this process instead of executing the plugin.",
		"bgp":                       "The BGP speaker, a process of its own.",
		"bgp.uid":                   "Whom it runs as; no other program's.",
		"checksums":                 "Who computes checksums of packets in VXLAN: auto (other nodes' agents are asked), software, device.",
		"logLevel":                  "debug, info, warn or error.",
	}
}
