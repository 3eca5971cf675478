package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/spec"
)

// validate checks everything that the types do not. Errors carry code 7, or 2 for a value that is understood but
// not supported.
func (c *Config) validate() error {
	var bad []error
	fail := func(format string, args ...any) { bad = append(bad, spec.Errorf(spec.CodeConfig, format, args...)) }
	if c.Name == "" {
		fail("missing network name (key \"name\")")
	} else if !ValidID(c.Name) {
		fail("name %q must match [a-zA-Z0-9][a-zA-Z0-9_.-]*", c.Name)
	} else if len(c.Name) > MaxName {
		fail("name %.40s… is %d bytes long, the limit is %d", c.Name, len(c.Name), MaxName)
	}
	if c.Backend != "" && c.Backend != NFTables && c.Backend != IPTables {
		fail("backend %q is neither %q nor %q", c.Backend, NFTables, IPTables)
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		fail("mtu %d is not between 68 and 65535", c.MTU)
	}
	if c.CooldownSeconds != nil && (*c.CooldownSeconds < 0 || *c.CooldownSeconds > 86400) {
		fail("cooldownSeconds %d is not between 0 and 86400", *c.CooldownSeconds)
	}
	if !filepath.IsAbs(c.StateDir) {
		fail("stateDir %q is not absolute", c.StateDir)
	}
	if slices.Contains(c.ReservedNamespaces, "") {
		fail("reservedNamespaces: one of them is empty")
	}
	if c.AgentSocket != "" && !filepath.IsAbs(c.AgentSocket) {
		fail("agentSocket %q is not absolute", c.AgentSocket)
	}
	for i, d := range c.ImportHostLocal {
		if !filepath.IsAbs(d) {
			fail("importHostLocal[%d] %q is not absolute", i, d)
		}
	}
	for i, r := range c.Ranges {
		if err := r.check(); err != nil {
			fail("ranges[%d]: %w", i, err)
		}
		for j, o := range c.Ranges[:i] {
			if o.Subnet != r.Subnet && o.Subnet.IsValid() && o.Subnet.Overlaps(r.Subnet) {
				fail("ranges[%d].subnet %s overlaps ranges[%d].subnet %s", i, r.Subnet, j, o.Subnet)
			}
		}
	}
	for _, r := range c.Ranges {
		if c.MTU != 0 && c.MTU < 1280 && r.Subnet.Addr().Is6() {
			fail("mtu %d is too small for the IPv6 range %s, which needs 1280", c.MTU, r.Subnet)
		}
	}
	for i, p := range c.MasqueradeExclude {
		if !p.IsValid() || p != p.Masked() {
			fail("masqueradeExclude[%d] %q is not the first address of its network", i, p)
		}
	}
	return join(bad)
}

// join makes one error of many that keeps the first one's code.
func join(bad []error) error {
	switch len(bad) {
	case 0:
		return nil
	case 1:
		return bad[0]
	}
	return spec.Errorf(spec.AsError(bad[0]).Code, "%w", errors.Join(bad...))
}

func (r *Range) check() error {
	s := r.Subnet
	switch {
	case !s.IsValid():
		return errors.New("subnet is missing")
	case s.Addr().Is4In6():
		return fmt.Errorf("subnet %s is an IPv4 network in IPv6 clothes", s)
	case s != s.Masked():
		return fmt.Errorf("subnet %s has bits behind its prefix, want %s", s, s.Masked())
	case s.Addr().Is4() && s.Bits() < 8, s.Addr().Is6() && s.Bits() < 48:
		return fmt.Errorf("subnet %s is larger than a node can use (/8 for IPv4, /48 for IPv6)", s)
	case s.Bits() > s.Addr().BitLen()-1:
		return fmt.Errorf("subnet %s is too small for a pool", s)
	}
	for _, a := range []struct {
		key  string
		addr netip.Addr
	}{{"rangeStart", r.RangeStart}, {"rangeEnd", r.RangeEnd}, {"gateway", r.Gateway}} {
		if a.addr.IsValid() && !s.Contains(a.addr) {
			return fmt.Errorf("%s %s is not in subnet %s", a.key, a.addr, s)
		}
	}
	if r.RangeStart.IsValid() && r.RangeEnd.IsValid() && r.RangeEnd.Less(r.RangeStart) {
		return fmt.Errorf("rangeEnd %s is before rangeStart %s", r.RangeEnd, r.RangeStart)
	}
	if slices.Contains(r.Namespaces, "") {
		return errors.New("namespaces: one of them is empty")
	}
	for i, p := range r.Exclude {
		if !p.IsValid() || !s.Overlaps(p) {
			return fmt.Errorf("exclude[%d] %s is not in subnet %s", i, p, s)
		}
	}
	return nil
}

// MaxName is how long a network's name may be, in bytes: it is part of file names.
const MaxName = 200

// ValidID is the specification's rule for network names and container ids.
func ValidID(s string) bool {
	for i, c := range []byte(s) {
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// ValidIfName is the kernel's rule for interface names (dev_valid_name) without the names that sysctl paths
// cannot take.
func ValidIfName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." || s == "all" || s == "default" || s == "lo" {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c == '/' || c == ':' || c >= 0x7f {
			return false
		}
	}
	return true
}

// unknownKeys refuses keys that this plugin does not know (code 2). Keys with a slash belong to somebody's
// namespace and pass.
func unknownKeys(stdin []byte) error {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &top); err != nil {
		return DecodeError(err)
	}
	known := []string{
		"cniVersion", "cniVersions", "name", "type", "backend", "ranges", "reservedNamespaces", "ipMasq", "masqueradeExclude", "mtu",
		"stateDir", "cooldownSeconds", "importHostLocal", "agentSocket", "dns", "runtimeConfig", "args", "prevResult", "capabilities", "disableCheck",
		"disableGC", "loadOnlyInlinedPlugins",
	}
	var bad []error
	bad = append(bad, unknown("", top, known)...)
	var ranges []map[string]json.RawMessage
	if json.Unmarshal(top["ranges"], &ranges) == nil {
		for i, r := range ranges {
			bad = append(bad, unknown(fmt.Sprintf("ranges[%d].", i), r,
				[]string{"subnet", "rangeStart", "rangeEnd", "gateway", "exclude", "namespaces", "ipMasq"})...)
		}
	}
	return join(bad)
}

func unknown(prefix string, got map[string]json.RawMessage, known []string) (bad []error) {
next:
	for _, key := range slices.Sorted(maps.Keys(got)) {
		v := got[key]
		if strings.Contains(key, "/") {
			continue
		}
		nearest, best := "", 4
		for _, k := range known {
			if k == key {
				continue next
			}
			if d := distance(strings.ToLower(k), strings.ToLower(key)); d < best {
				nearest, best = k, d
			}
		}
		hint := ""
		if nearest != "" {
			hint = fmt.Sprintf("; did you mean %q?", nearest)
		}
		if len(v) > 80 {
			v = append(v[:80:80], "…"...)
		}
		bad = append(bad, spec.Errorf(spec.CodeField, "unsupported key %q with value %s%s", prefix+key, v, hint))
	}
	return bad
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}
