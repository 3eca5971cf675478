package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/berth-project/berth/cni/internal/strictyaml"
	"github.com/berth-project/berth/internal/nearest"
)

// MinMTU is the smallest that IPv6 can live with (RFC 8200 §5); a pool without IPv6 may go to 576.
const (
	MinMTU  = 1280
	minMTU4 = 576
	maxMTU  = 65535
)

var namespace = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // RFC 1123 label

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// Parse reads a fabric file and checks it; in a file, where one hand writes both, a peer's nodes must be there too.
func Parse(b []byte) (*Fabric, error) {
	f := &Fabric{}
	if err := strictyaml.Decode(b, f); err != nil {
		return nil, err
	}
	return f, errors.Join(f.Validate(), f.strangers())
}

// Validate joins everything that is wrong. Each error names the key.
func (f *Fabric) Validate() error {
	var c checker
	if f.Tunnel.VNI >= 1<<24 {
		c.bad("tunnel.vni: %d, at most %d", f.Tunnel.VNI, 1<<24-1)
	}
	c.pools(f.Pools)
	c.nodes(f)
	c.bgp(f)
	return errors.Join(c.errs...)
}

type checker struct{ errs []error }

func (c *checker) bad(format string, args ...any) {
	if len(c.errs) < 50 {
		c.errs = append(c.errs, fmt.Errorf(format, args...))
	}
}

func (c *checker) pools(pools []Pool) {
	names := map[string]bool{}
	var seen []netip.Prefix
	for i, p := range pools {
		at := fmt.Sprintf("pools[%d]", i)
		if !nodeName.MatchString(p.Name) {
			c.bad("%s.name: %q is no name of small letters, digits, dots and dashes", at, p.Name)
		} else if names[p.Name] {
			c.bad("%s.name: there is another pool %q", at, p.Name)
		}
		names[p.Name] = true
		if mode := p.EffectiveMode(); !slices.Contains(Modes(), mode) {
			c.bad("%s.mode: %q is none of %v, nearest is %q", at, mode, Modes(), nearest.To(string(mode), modeNames()))
		} else if p.Direct && mode != VXLAN {
			c.bad("%s.direct: only mode %s can spare its wrapping", at, VXLAN)
		}
		if p.MTU != 0 && (p.MTU < minMTU4 || p.MTU > maxMTU) {
			c.bad("%s.mtu: %d is not between %d and %d", at, p.MTU, minMTU4, maxMTU)
		}
		for j, n := range p.Namespaces {
			if !namespace.MatchString(n) {
				c.bad("%s.namespaces[%d]: %q is no name of a namespace", at, j, n)
			}
		}
		if len(p.CIDRs) == 0 {
			c.bad("%s.cidrs: there is none", at)
		}
		for j, cidr := range p.CIDRs {
			c.prefix(fmt.Sprintf("%s.cidrs[%d]", at, j), cidr)
			if cidr.IsValid() && cidr.Addr().Is6() && p.MTU != 0 && p.MTU < MinMTU {
				c.bad("%s.mtu: %d is too small for the IPv6 network %s, which needs %d", at, p.MTU, cidr, MinMTU)
			}
			for _, o := range seen {
				if cidr.IsValid() && o.Overlaps(cidr) {
					c.bad("%s.cidrs[%d]: %s overlaps %s", at, j, cidr, o)
				}
			}
			if cidr.IsValid() {
				seen = append(seen, cidr)
			}
		}
	}
}

func modeNames() []string {
	var all []string
	for _, m := range Modes() {
		all = append(all, string(m))
	}
	return all
}

func (c *checker) prefix(key string, p netip.Prefix) {
	switch {
	case !p.IsValid():
		c.bad("%s: missing", key)
	case p.Addr().Is4In6():
		c.bad("%s: %s is an IPv4 network in IPv6 clothes", key, p)
	case p != p.Masked():
		c.bad("%s: %s has bits behind its prefix, want %s", key, p, p.Masked())
	case p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
		c.bad("%s: %s cannot be pods' addresses", key, p)
	}
}

// nodes checks each node and that no two share what must be unique. It is linear in the number of nodes but for the
// blocks, which are sorted.
func (c *checker) nodes(f *Fabric) {
	names, addrs, macs := map[string]int{}, map[netip.Addr]int{}, map[MAC]int{}
	type owned struct {
		block netip.Prefix
		node  int
	}
	var blocks []owned
	for i, n := range f.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		if !nodeName.MatchString(n.Name) {
			c.bad("%s.name: %q is no name of small letters, digits, dots and dashes", at, n.Name)
		} else if o, taken := names[n.Name]; taken {
			c.bad("%s.name: %q is also that of nodes[%d]", at, n.Name, o)
		}
		names[n.Name] = i
		for _, a := range n.Addresses {
			if o, taken := addrs[a]; taken && a.IsValid() {
				c.bad("%s.addresses: %s is also that of nodes[%d]", at, a, o)
			}
			addrs[a] = i
		}
		for _, mac := range []MAC{n.MAC(false), n.MAC(true)} {
			if o, taken := macs[mac]; taken && o != i {
				c.bad("%s.vtepMAC: %s is also that of nodes[%d]", at, mac, o)
			}
			macs[mac] = i
		}
		c.errs = append(c.errs, n.check(at, f)...)
		for _, b := range n.PodCIDRs {
			if b.IsValid() {
				blocks = append(blocks, owned{b, i})
			}
		}
	}
	slices.SortFunc(blocks, func(a, b owned) int { return ComparePrefix(a.block, b.block) })
	for i := 1; i < len(blocks); i++ {
		if a, b := blocks[i-1], blocks[i]; a.block.Overlaps(b.block) {
			c.bad("nodes[%d].podCIDRs: %s overlaps %s of nodes[%d]", b.node, b.block, a.block, a.node)
		}
	}
}

// check is everything that can be said of a node alone.
func (n Node) check(at string, f *Fabric) []error {
	var c checker
	var v4, v6 int
	for j, a := range n.Addresses {
		switch {
		case !a.IsValid(), a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast(), a.Is4In6(), a.Zone() != "":
			c.bad("%s.addresses[%d]: %v is no address that other nodes can reach", at, j, a)
		case a.Is4():
			v4++
		default:
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		c.bad("%s.addresses: more than one of a family", at)
	}
	if n.MTU != 0 && (n.MTU < minMTU4 || n.MTU > maxMTU) {
		c.bad("%s.mtu: %d is not between %d and %d", at, n.MTU, minMTU4, maxMTU)
	}
	for j, b := range n.PodCIDRs {
		key := fmt.Sprintf("%s.podCIDRs[%d]", at, j)
		c.prefix(key, b)
		if _, ok := f.PoolOf(b); b.IsValid() && !ok {
			c.bad("%s: %s is in no pool", key, b)
		}
	}
	return c.errs
}
