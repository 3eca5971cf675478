// Package fabric is the model of a pod network: which nodes there are, which blocks of addresses are theirs, and how
// the blocks of each pool are reached from other nodes. Where the model comes from, a file or Kubernetes, is not seen
// in it. The package is pure and imports no source of it.
package fabric

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
)

// Mode is how the blocks of a pool are reached.
type Mode string

// The modes. A pool without one has VXLAN.
const (
	// VXLAN wraps packets in UDP (RFC 7348).
	VXLAN Mode = "vxlan"
	// HostGW routes to the node's own address, which must be on the same network.
	HostGW Mode = "host-gw"
	// BGPMode takes the routes that the speaker learns.
	BGPMode Mode = "bgp"
	// UDP wraps packets in plain UDP, in the agent itself: for networks that carry nothing else, and slow.
	UDP Mode = "udp"
	// None leaves it to somebody else; pods of the node itself are served all the same.
	None Mode = "none"
)

// Modes lists them.
func Modes() []Mode { return []Mode{VXLAN, HostGW, BGPMode, UDP, None} }

// Fabric is the whole desired state of a cluster's pod network, the same on every node.
type Fabric struct {
	Tunnel Tunnel `yaml:"tunnel"`
	BGP    BGP    `yaml:"bgp,omitempty"`
	Pools  []Pool `yaml:"pools"`
	Nodes  []Node `yaml:"nodes"`
}

// Tunnel is what all tunnels of the cluster agree on.
type Tunnel struct {
	// VNI is the VXLAN network identifier, 1 to 2²⁴-1; 0 means 1, as flannel has it.
	VNI uint32 `yaml:"vni,omitempty"`
	// Port is the UDP port; 0 means 8472, the Linux kernel's own and flannel's. 4789 is IANA's.
	Port uint16 `yaml:"port,omitempty"`
	// UDPPort is that of mode udp; 0 means 8285.
	UDPPort uint16 `yaml:"udpPort,omitempty"`
	// TestPort is the UDP port at which nodes ask each other, through the tunnel, whether checksums arrive as they should;
	// 0 means 8473.
	TestPort uint16 `yaml:"testPort,omitempty"`
}

// WithDefaults fills in what is not said.
func (t Tunnel) WithDefaults() Tunnel {
	if t.VNI == 0 {
		t.VNI = 1
	}
	if t.Port == 0 {
		t.Port = 8472
	}
	if t.UDPPort == 0 {
		t.UDPPort = 8285
	}
	if t.TestPort == 0 {
		t.TestPort = 8473
	}
	return t
}

// Pool is a set of prefixes that pods have their addresses from.
type Pool struct {
	Name string `yaml:"name"`
	// CIDRs hold the nodes' blocks; none overlaps another pool's.
	CIDRs []netip.Prefix `yaml:"cidrs"`
	// Mode is how they are reached; empty means VXLAN.
	Mode Mode `yaml:"mode,omitempty"`
	// Direct spares VXLAN's wrapping between nodes of the same network.
	Direct bool `yaml:"direct,omitempty"`
	// MTU is the most that a packet between pods may have, in bytes; 0 derives it for each route.
	MTU int `yaml:"mtu,omitempty"`
	// Namespaces are those whose pods have their addresses from here and nowhere else; no other's do. None: all others.
	Namespaces []string `yaml:"namespaces,omitempty"`
	// NoMasquerade leaves pods their own address also towards the outside of all pools.
	NoMasquerade bool `yaml:"noMasquerade,omitempty"`
}

// EffectiveMode is Mode with its default.
func (p Pool) EffectiveMode() Mode {
	if p.Mode == "" {
		return VXLAN
	}
	return p.Mode
}

// Node is one machine.
type Node struct {
	Name string `yaml:"name"`
	// UID makes the VTEP's MAC differ from that of an earlier node of this name; may be empty.
	UID string `yaml:"uid,omitempty"`
	// Addresses are where other nodes reach it, at most one of each family.
	Addresses []netip.Addr `yaml:"addresses"`
	// PodCIDRs are its blocks, each inside one pool.
	PodCIDRs []netip.Prefix `yaml:"podCIDRs"`
	// VTEPMAC is said where another program chose it, as "02:…"; empty: see [Node.MAC].
	VTEPMAC MAC `yaml:"vtepMAC,omitempty"`
	// VTEPMAC6 is that of the device whose outer packets are IPv6; empty: the same.
	VTEPMAC6 MAC `yaml:"vtepMAC6,omitempty"`
	// MTU is that of its network in bytes, if it is smaller than what others assume; 0: not said.
	MTU int `yaml:"mtu,omitempty"`
	// Segment names its layer-2 network; where it is not said, the addresses decide.
	Segment string `yaml:"segment,omitempty"`
	// Labels are matched by BGP's selectors.
	Labels map[string]string `yaml:"labels,omitempty"`
}

// Address is the node's address of a family; the zero Addr if it has none.
func (n Node) Address(v6 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// MAC is an Ethernet address; zero means that none is said.
type MAC [6]byte

// String is the usual form.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MarshalText is String.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the usual form of a unicast address.
func (m *MAC) UnmarshalText(b []byte) error {
	var x MAC
	n, err := fmt.Sscanf(string(b), "%02x:%02x:%02x:%02x:%02x:%02x", &x[0], &x[1], &x[2], &x[3], &x[4], &x[5])
	if err != nil || n != 6 || len(b) != 17 {
		return fmt.Errorf("%.20q is no Ethernet address such as 02:00:5e:10:00:01", b)
	}
	if x[0]&1 != 0 || x == (MAC{}) {
		return fmt.Errorf("%s is no unicast Ethernet address", x)
	}
	*m = x
	return nil
}

// IsZero says whether none is said.
func (m MAC) IsZero() bool { return m == MAC{} }

// MAC is the address of the node's VTEP with outer packets of that family: what is said, else the first bytes of a hash
// of UID and name, locally administered. It is the same on every start and on every node that computes it, so nothing
// has to be told.
func (n Node) MAC(v6 bool) MAC {
	if v6 && !n.VTEPMAC6.IsZero() {
		return n.VTEPMAC6
	}
	if !n.VTEPMAC.IsZero() {
		return n.VTEPMAC
	}
	sum := sha256.Sum256([]byte("berth vtep\x00" + n.UID + "\x00" + n.Name))
	var m MAC
	copy(m[:], sum[:])
	m[0] = m[0]&^1 | 2
	return m
}

// Node is the node of that name, and whether there is one.
func (f *Fabric) Node(name string) (Node, bool) {
	i := slices.IndexFunc(f.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return f.Nodes[i], true
}

// PoolOf is the pool that a block is in, and whether there is one.
func (f *Fabric) PoolOf(block netip.Prefix) (Pool, bool) {
	for _, p := range f.Pools {
		for _, c := range p.CIDRs {
			if Within(block, c) {
				return p, true
			}
		}
	}
	return Pool{}, false
}

// CIDRs are those of all pools, sorted.
func (f *Fabric) CIDRs() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range f.Pools {
		all = append(all, p.CIDRs...)
	}
	slices.SortFunc(all, ComparePrefix)
	return all
}

// Within says whether block is c or inside of it.
func Within(block, c netip.Prefix) bool {
	return block.Bits() >= c.Bits() && c.Contains(block.Addr())
}

// ComparePrefix orders by family, address, length.
func ComparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
