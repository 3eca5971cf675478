package fabric

import "net/netip"

// BGPRule is one line of a peer's filter; the first that matches a route decides, and where none does the default: what
// lies inside of a pool or of a range of services, and never a default route. A rule without conditions matches all.
// What is text here is read by the node whose peer it is: one that is wrong costs that peer, and no other object.
type BGPRule struct {
	// Action is accept or reject.
	Action string `yaml:"action" json:"action"`
	// Prefixes match a route that lies in one of them, Communities one that has one of them ("64512:7", "64512:1:2" or a
	// well-known name such as no-export).
	Prefixes    []BGPPrefixes `yaml:"prefixes,omitempty" json:"prefixes,omitempty"`
	Communities []string      `yaml:"communities,omitempty" json:"communities,omitempty"`
	// What is laid on an accepted route: communities are added; the path is longer by Prepend times the AS.
	AddCommunities []string `yaml:"addCommunities,omitempty" json:"addCommunities,omitempty"`
	LocalPref      *uint32  `yaml:"localPref,omitempty" json:"localPref,omitempty"`
	MED            *uint32  `yaml:"med,omitempty" json:"med,omitempty"`
	Prepend        uint8    `yaml:"prepend,omitempty" json:"prepend,omitempty"`
}

// BGPPrefixes are the prefixes within CIDR that are Min to Max bits long; 0 and 0: of any length.
type BGPPrefixes struct {
	CIDR string `yaml:"cidr" json:"cidr"`
	Min  int    `yaml:"min,omitempty" json:"min,omitempty"`
	Max  int    `yaml:"max,omitempty" json:"max,omitempty"`
}

// BGPService is addresses of services that nodes say they can be reached at.
type BGPService struct {
	// Name is for people, "namespace/name" in a cluster.
	Name string `yaml:"name"`
	// Prefix lies in one of [BGP.ServiceRanges]; for one address it has all bits.
	Prefix netip.Prefix `yaml:"prefix"`
	// Nodes are those that say so; none are all of them.
	Nodes []string `yaml:"nodes,omitempty"`
}
