package dropin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/iptables"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/spec"
)

// conf is what a configuration of every type may hold. Keys that no type knows pass, as they do upstream: chains in the
// field are full of them.
type conf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	DNS        spec.DNS        `json:"dns"`
	PrevResult json.RawMessage `json:"prevResult"`
	IPAM       struct {
		Type string `json:"type"`
	} `json:"ipam"`

	// StateDir is ours: where records are kept.
	StateDir string `json:"stateDir"`

	RuntimeConfig struct {
		PortMappings []netconf.PortMapping `json:"portMappings"`
		Bandwidth    *netconf.Bandwidth    `json:"bandwidth"`
		MAC          string                `json:"mac"`
		IPs          []string              `json:"ips"`
		IPRanges     [][]ipRange           `json:"ipRanges"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			MAC string   `json:"mac"`
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`

	Valid    *[]netconf.Attachment `json:"cni.dev/valid-attachments"`
	OldValid *[]netconf.Attachment `json:"cni.dev/attachments"`
}

// parse reads stdin into the part that all types share, and into the type's own keys.
func (c *Call) parse(own any) error {
	if len(c.Stdin) > netconf.MaxSize {
		return spec.Errorf(spec.CodeDecode, "the network configuration is %d bytes long, the limit is %d", len(c.Stdin), netconf.MaxSize)
	}
	if err := json.Unmarshal(c.Stdin, &c.conf); err != nil {
		return netconf.DecodeError(err)
	}
	if c.conf.CNIVersion == "" {
		c.conf.CNIVersion = spec.DefaultVersion
	}
	if !slices.Contains(spec.Versions(), c.conf.CNIVersion) {
		v := c.conf.CNIVersion
		c.conf.CNIVersion = ""
		return spec.Errorf(spec.CodeVersion, "cniVersion %q is none of %v", v, spec.Versions())
	}
	switch {
	case c.conf.Name == "":
		return spec.Errorf(spec.CodeConfig, "missing network name (key \"name\")")
	case !netconf.ValidID(c.conf.Name):
		return spec.Errorf(spec.CodeConfig, "name %q must match [a-zA-Z0-9][a-zA-Z0-9_.-]*", c.conf.Name)
	case len(c.conf.Name) > netconf.MaxName:
		return spec.Errorf(spec.CodeConfig, "name %.40s… is %d bytes long, the limit is %d", c.conf.Name, len(c.conf.Name), netconf.MaxName)
	case c.conf.StateDir == "":
		c.conf.StateDir = netconf.DefaultStateDir
	case !filepath.IsAbs(c.conf.StateDir):
		return spec.Errorf(spec.CodeConfig, "stateDir %q is not absolute", c.conf.StateDir)
	}
	if own != nil {
		if err := json.Unmarshal(c.Stdin, own); err != nil {
			return netconf.DecodeError(err)
		}
	}
	if c.conf.OldValid != nil && c.conf.Valid == nil {
		c.conf.Valid = c.conf.OldValid
	}
	return nil
}

// previous is the result of the plugins before this one in the chain; nil if there are none.
func (c *Call) previous() (*spec.Result, error) {
	if raw := c.conf.PrevResult; len(raw) > 0 && string(raw) != "null" {
		return spec.Decode("prevResult", raw, c.conf.CNIVersion)
	}
	return nil, nil //nolint:nilnil // documented
}

// chained is previous for a plugin that is never the first.
func (c *Call) chained() (*spec.Result, error) {
	r, err := c.previous()
	if err == nil && r == nil {
		err = spec.Errorf(spec.CodeConfig, "prevResult is missing: type %s must come after a plugin that makes the interface", c.Type)
	}
	return r, err
}

// pass hands the previous result on, byte for byte if the version is the same, so that what we do not know stays.
func (c *Call) pass(r *spec.Result) ([]byte, error) {
	var v struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(c.conf.PrevResult, &v); err == nil && v.CNIVersion == c.conf.CNIVersion {
		var out bytes.Buffer
		if err := json.Compact(&out, c.conf.PrevResult); err == nil {
			return append(out.Bytes(), '\n'), nil
		}
	}
	return r.Encode(c.conf.CNIVersion)
}

// nodeFile says what is true of the whole node: {"backend": "iptables"}.
const nodeFile = "/etc/berth/cni.json"

// backend is where an attachment's rules go. For ADD, iptables must be installed.
func (c *Call) backend(key, value, forced string) (ipt bool, err error) {
	ipt, err = chosen(key, value, forced)
	if err == nil && ipt && c.Verb == "ADD" {
		if err = iptables.Installed(); err != nil {
			err = spec.Errorf(spec.CodeConfig, "%s: %w", key, err)
		}
	}
	return ipt, err
}

// NodeBackend says whether the node's file sends all rules of which nothing else is said to iptables.
func NodeBackend() (ipt bool, err error) { return chosen("backend", "", "") }

// chosen is where an attachment's rules go: what the configuration says, else what the node's file says, else
// nftables. forced names a key that only iptables has, and that decides.
func chosen(key, value, forced string) (ipt bool, err error) {
	if value == "" && forced != "" {
		return true, nil
	}
	if value == "" {
		key = nodeFile + ": backend"
		b, err := os.ReadFile(nodeFile)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, spec.Errorf(spec.CodeIO, "%w", err)
		}
		var node struct {
			Backend string `json:"backend"`
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&node); err != nil {
			return false, spec.Errorf(spec.CodeConfig, "%s: %w", nodeFile, err)
		}
		value = node.Backend
	}
	switch strings.ToLower(value) {
	case "", "nftables":
		if forced != "" {
			return false, spec.Errorf(spec.CodeConfig, "%s is %q, but %s is for iptables: take out one of them", key, value, forced)
		}
		return false, nil
	case "iptables":
		return true, nil
	}
	return false, spec.Errorf(spec.CodeField, "unsupported key %q with value %q: want nftables or iptables", key, value)
}
