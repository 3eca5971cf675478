// Package netconf reads what a runtime hands to the plugin: the network configuration on stdin with its
// runtimeConfig and args, and CNI_ARGS. It is strict: an unknown key is an error that names the nearest known
// one, and every error names the key and the value (codes 2, 6 and 7 of the specification). It is pure.
package netconf

import (
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/berth-project/berth/cni/internal/spec"
)

// MaxSize bounds a configuration on stdin, in bytes; the largest in the field are a few kilobytes, and a GC's
// list of valid attachments takes 150 bytes for each.
const MaxSize = 4 << 20

// DefaultStateDir is where records and pools are kept.
const DefaultStateDir = "/run/berth/cni"

// Config is a network configuration of type berth or loopback.
type Config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`

	// Ranges are the pools that pods get their addresses from: one address for each family that is listed.
	// Several ranges of a family are tried in order. Default: 10.88.0.0/16.
	Ranges []Range `json:"ranges"`
	// ReservedNamespaces are those whose addresses are not here yet: their pods are refused for now.
	ReservedNamespaces []string `json:"reservedNamespaces"`
	// IPMasq gives traffic that leaves all pools the node's address. Default: true.
	IPMasq *bool `json:"ipMasq"`
	// MasqueradeExclude are destinations outside the pools that see the pod's own address all the same.
	MasqueradeExclude Prefixes `json:"masqueradeExclude"`
	// Backend is where rules go: "nftables" (the default), or "iptables" on a node that must have it.
	Backend string `json:"backend"`
	// MTU of the pod's interface in bytes. Default: that of the device of the node's default route.
	MTU int `json:"mtu"`
	// StateDir holds records and pools. It must not survive a reboot to be useful, but may.
	StateDir string `json:"stateDir"`
	// CooldownSeconds is how long an address rests after DEL, if the range has another. Default: 130, longer
	// than a TCP handshake is retried by a peer that remembers the old pod.
	CooldownSeconds *int `json:"cooldownSeconds"`

	// AgentSocket is where a runtime that knows how has a resident agent do this plugin's work (proto/cniagent/v1). The
	// plugin itself does not use it.
	AgentSocket string `json:"agentSocket"`

	// ImportHostLocal are directories of upstream's host-local (/var/lib/cni/networks/NAME) whose leases still belong
	// to running pods: an address with a file there is not given out.
	ImportHostLocal []string `json:"importHostLocal"`

	DNS           spec.DNS        `json:"dns"`
	RuntimeConfig RuntimeConfig   `json:"runtimeConfig"`
	Args          Args            `json:"args"`
	PrevResult    json.RawMessage `json:"prevResult"`

	// ValidAttachments is the GC verb's list under its present name, and OldAttachments under its first.
	ValidAttachments *[]Attachment `json:"cni.dev/valid-attachments"`
	OldAttachments   *[]Attachment `json:"cni.dev/attachments"`

	// What the specification and runtimes add, and this plugin accepts without using it.
	CNIVersions            json.RawMessage `json:"cniVersions"`
	Capabilities           json.RawMessage `json:"capabilities"`
	DisableCheck           json.RawMessage `json:"disableCheck"`
	DisableGC              json.RawMessage `json:"disableGC"`
	LoadOnlyInlinedPlugins json.RawMessage `json:"loadOnlyInlinedPlugins"`
}

// Backends.
const (
	NFTables = "nftables"
	IPTables = "iptables"
)

// Range is one pool.
type Range struct {
	Subnet netip.Prefix `json:"subnet"`
	// RangeStart and RangeEnd narrow the pool, both inclusive.
	RangeStart netip.Addr `json:"rangeStart"`
	RangeEnd   netip.Addr `json:"rangeEnd"`
	// Gateway is an address of the subnet that something else uses; it is never given to a pod. (Pods of type
	// berth reach everything through 169.254.1.1 and fe80::1.)
	Gateway netip.Addr `json:"gateway"`
	// Exclude are further addresses that are never given to a pod.
	Exclude Prefixes `json:"exclude"`
	// Namespaces are those whose pods get their addresses here and nowhere else; no other's do. None: all others.
	Namespaces []string `json:"namespaces"`
	// IPMasq false leaves pods with an address from here their own address wherever they go. Default: the network's.
	IPMasq *bool `json:"ipMasq"`
}

// Prefixes is a list of networks.
type Prefixes []netip.Prefix

// UnmarshalJSON reads the list and names the entry that is none.
func (p *Prefixes) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*p = nil
	for i, s := range list {
		one, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); err != nil && aerr == nil {
			one, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return spec.Errorf(spec.CodeConfig, "entry %d of the list, %q, is not a network such as 10.0.0.0/8", i, s)
		}
		*p = append(*p, one)
	}
	return nil
}

// UnmarshalJSON reads a range and names the key whose value is no address.
func (r *Range) UnmarshalJSON(b []byte) error {
	var raw struct {
		Subnet     string   `json:"subnet"`
		RangeStart string   `json:"rangeStart"`
		RangeEnd   string   `json:"rangeEnd"`
		Gateway    string   `json:"gateway"`
		Exclude    Prefixes `json:"exclude"`
		Namespaces []string `json:"namespaces"`
		IPMasq     *bool    `json:"ipMasq"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	subnet, err := netip.ParsePrefix(raw.Subnet)
	if err != nil {
		return spec.Errorf(spec.CodeConfig, "ranges: subnet %q is not a network such as 10.88.0.0/16", raw.Subnet)
	}
	*r = Range{Subnet: subnet, Exclude: raw.Exclude, Namespaces: raw.Namespaces, IPMasq: raw.IPMasq}
	for _, f := range []struct {
		key, value string
		to         *netip.Addr
	}{{"rangeStart", raw.RangeStart, &r.RangeStart}, {"rangeEnd", raw.RangeEnd, &r.RangeEnd}, {"gateway", raw.Gateway, &r.Gateway}} {
		if f.value == "" {
			continue
		}
		if *f.to, err = netip.ParseAddr(f.value); err != nil || f.to.Zone() != "" {
			return spec.Errorf(spec.CodeConfig, "ranges: %s %q is not an address", f.key, f.value)
		}
	}
	return nil
}

// Attachment is one entry of the GC verb's list.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// RuntimeConfig is what the runtime fills in for the capabilities that the configuration declares
// (CONVENTIONS.md).
type RuntimeConfig struct {
	PortMappings []PortMapping   `json:"portMappings"`
	Bandwidth    *Bandwidth      `json:"bandwidth"`
	IPRanges     [][]Range       `json:"ipRanges"`
	IPs          []string        `json:"ips"`
	MAC          string          `json:"mac"`
	DNS          RuntimeDNS      `json:"dns"`
	CgroupPath   string          `json:"cgroupPath"`
	Annotations  json.RawMessage `json:"io.kubernetes.cri.pod-annotations"`
	Aliases      json.RawMessage `json:"aliases"`
}

// RuntimeDNS is the dns capability, whose search list has another name than in a result.
type RuntimeDNS struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

// PortMapping is one entry of the portMappings capability.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// Args is args.cni of the configuration.
type Args struct {
	CNI struct {
		IPs    []string        `json:"ips"`
		MAC    string          `json:"mac"`
		Labels json.RawMessage `json:"labels"`
	} `json:"cni"`
}

// Parse reads and checks a configuration. The error joins everything that is wrong with it.
func Parse(stdin []byte) (*Config, error) {
	if len(stdin) > MaxSize {
		return nil, spec.Errorf(spec.CodeDecode, "the network configuration is %d bytes long, the limit is %d", len(stdin), MaxSize)
	}
	c := &Config{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, DecodeError(err)
	}
	if c.CNIVersion == "" {
		c.CNIVersion = spec.DefaultVersion
	}
	if !slices.Contains(spec.Versions(), c.CNIVersion) {
		return nil, spec.Errorf(spec.CodeVersion, "cniVersion %q is none of %v", c.CNIVersion, spec.Versions())
	}
	if err := unknownKeys(stdin); err != nil {
		return c, err
	}
	c.setDefaults()
	return c, c.validate()
}

// DecodeError gives what encoding/json says its code and, where it can, the key.
func DecodeError(err error) error {
	var coded *spec.Error
	if errors.As(err, &coded) {
		return err
	}
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return spec.Errorf(spec.CodeDecode, "network configuration: key %q holds a %s, want %s", te.Field, te.Value, te.Type)
	}
	return spec.Errorf(spec.CodeDecode, "network configuration: %w", err)
}

func (c *Config) setDefaults() {
	if len(c.Ranges) == 0 {
		c.Ranges = []Range{{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, 0}), 16)}}
	}
	for i := len(c.RuntimeConfig.IPRanges) - 1; i >= 0; i-- { // the runtime's come first
		c.Ranges = append(slices.Clone(c.RuntimeConfig.IPRanges[i]), c.Ranges...)
	}
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	c.StateDir = filepath.Clean(c.StateDir)
}

// Masquerade is the effective ipMasq of a pod with these addresses: no range of theirs may be against it.
func (c *Config) Masquerade(addrs ...netip.Addr) bool {
	for _, r := range c.Ranges {
		if r.IPMasq != nil && !*r.IPMasq && slices.ContainsFunc(addrs, r.Subnet.Contains) {
			return false
		}
	}
	return c.IPMasq == nil || *c.IPMasq
}

// Cooldown is the effective cooldownSeconds.
func (c *Config) Cooldown() int {
	if c.CooldownSeconds == nil {
		return 130
	}
	return *c.CooldownSeconds
}

// Valid is the GC verb's list; ok is false if the runtime sent none.
func (c *Config) Valid() (list []Attachment, ok bool) {
	switch {
	case c.ValidAttachments != nil:
		return *c.ValidAttachments, true
	case c.OldAttachments != nil:
		return *c.OldAttachments, true
	}
	return nil, false
}

// ResultDNS is what the result says of DNS: the runtime's wish, else the configuration's.
func (c *Config) ResultDNS() spec.DNS {
	r := c.RuntimeConfig.DNS
	d := spec.DNS{Nameservers: r.Servers, Search: r.Searches, Options: r.Options}
	if d.Empty() {
		return c.DNS
	}
	return d
}

// RangesFor are the ranges of a family that pods of a namespace have their addresses from, in order. One that has ranges
// has addresses of no others, in neither family.
func (c *Config) RangesFor(namespace string, v6 bool) (out []Range) {
	named := func(r Range) bool { return slices.Contains(r.Namespaces, namespace) }
	has := slices.ContainsFunc(c.Ranges, named)
	for _, r := range c.Ranges {
		if r.Subnet.Addr().Is6() == v6 && (has && named(r) || !has && len(r.Namespaces) == 0) {
			out = append(out, r)
		}
	}
	return out
}

// Pools are the subnets of all ranges.
func (c *Config) Pools() []netip.Prefix {
	out := make([]netip.Prefix, len(c.Ranges))
	for i, r := range c.Ranges {
		out[i] = r.Subnet
	}
	return out
}

// RuntimePools are the subnets that came from the runtime, for this attachment alone.
func (c *Config) RuntimePools() []netip.Prefix {
	var out []netip.Prefix
	for _, set := range c.RuntimeConfig.IPRanges {
		for _, r := range set {
			out = append(out, r.Subnet)
		}
	}
	return out
}

// TypeOf reads nothing but the type; anything unreadable has none.
func TypeOf(stdin []byte) string {
	var t struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(stdin, &t) // Parse will say what is wrong
	return t.Type
}

// ParseLoopback reads a configuration of type loopback, which has no keys of its own and tolerates others'.
func ParseLoopback(stdin []byte) (*Config, error) {
	var l struct {
		CNIVersion string          `json:"cniVersion"`
		Name       string          `json:"name"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &l); err != nil {
		return nil, DecodeError(err)
	}
	c := &Config{CNIVersion: l.CNIVersion, Name: l.Name, Type: "loopback", PrevResult: l.PrevResult}
	if c.CNIVersion == "" {
		c.CNIVersion = spec.DefaultVersion
	}
	switch {
	case !slices.Contains(spec.Versions(), c.CNIVersion):
		return nil, spec.Errorf(spec.CodeVersion, "cniVersion %q is none of %v", c.CNIVersion, spec.Versions())
	case !ValidID(c.Name):
		return nil, spec.Errorf(spec.CodeConfig, "network name %q must match [a-zA-Z0-9][a-zA-Z0-9_.-]*", c.Name)
	}
	return c, nil
}
