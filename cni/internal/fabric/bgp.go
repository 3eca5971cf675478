package fabric

import "net/netip"

// BGP is how the nodes speak BGP where a pool has that mode. The zero value is a mesh of AS 64512.
type BGP struct {
	// ASN is the cluster's autonomous system; 0 means 64512.
	ASN uint32 `yaml:"asn,omitempty"`
	// Topology is mesh, reflectors or none; empty means a mesh up to 100 nodes and reflectors above.
	Topology string `yaml:"topology,omitempty"`
	// Reflectors are labels of the nodes that reflect; none: three are elected where some are needed.
	Reflectors map[string]string `yaml:"reflectors,omitempty"`
	// PasswordFile holds the key of sessions between nodes (TCP MD5), on every node; its bytes appear nowhere else.
	PasswordFile string `yaml:"passwordFile,omitempty"`
	// RestartSeconds is how long peers keep a node's routes while its speaker is away; 0 means 120.
	RestartSeconds int `yaml:"restartSeconds,omitempty"`
	// LongLivedSeconds is how much longer they keep them as the last resort (RFC 9494); 0: not.
	LongLivedSeconds int `yaml:"longLivedSeconds,omitempty"`
	// ServiceRanges hold all addresses of services that may be told. They are told to peers, and taken from other nodes
	// for their reflectors' sake, but no node's kernel gets a route to them: there a service proxy serves them.
	ServiceRanges []netip.Prefix `yaml:"serviceRanges,omitempty"`
	// Services are what is told.
	Services []BGPService `yaml:"services,omitempty"`
	// Peers are those outside of the cluster.
	Peers []BGPPeer `yaml:"peers,omitempty"`
}

// BGPPeer is a peer outside of the cluster, of the nodes that are named or have all of the labels; of all nodes where
// neither is said.
type BGPPeer struct {
	Name         string            `yaml:"name"`
	Address      netip.Addr        `yaml:"address"`
	ASN          uint32            `yaml:"asn"`
	Nodes        []string          `yaml:"nodes,omitempty"`
	Labels       map[string]string `yaml:"labels,omitempty"`
	PasswordFile string            `yaml:"passwordFile,omitempty"`
	// GTSM is how many hops away the peer is (RFC 5082); Multihop the TTL without that. 0: off.
	GTSM     uint8 `yaml:"gtsm,omitempty"`
	Multihop uint8 `yaml:"multihop,omitempty"`
	// BFD watches the path, three packets of 300 ms.
	BFD         bool   `yaml:"bfd,omitempty"`
	MaxPrefixes uint32 `yaml:"maxPrefixes,omitempty"`
	// Import filters what is taken from the peer, Export what it is told.
	Import []BGPRule `yaml:"import,omitempty"`
	Export []BGPRule `yaml:"export,omitempty"`
}

// LocalASN is ASN with its default.
func (b BGP) LocalASN() uint32 {
	if b.ASN == 0 {
		return 64512
	}
	return b.ASN
}

// SpeaksBGP says whether any pool is reached by BGP, or services are told by it.
func (f *Fabric) SpeaksBGP() bool {
	if len(f.BGP.ServiceRanges) > 0 {
		return true
	}
	for _, p := range f.Pools {
		if p.EffectiveMode() == BGPMode {
			return true
		}
	}
	return false
}
