package bgp

import (
	"net/netip"
	"time"
)

// Attributes are what a route is told with.
type Attributes struct {
	// Communities and LargeCommunities are added to those that the route has.
	Communities      []Community      `json:"communities,omitempty"`
	LargeCommunities []LargeCommunity `json:"largeCommunities,omitempty"`
	// MED is the multi-exit discriminator (RFC 4271 §5.1.4); nil leaves it.
	MED *uint32 `json:"med,omitempty"`
	// LocalPref is told to internal peers (RFC 4271 §5.1.5); nil leaves it, which is 100.
	LocalPref *uint32 `json:"localPref,omitempty"`
	// Prepend is how many more times the local AS stands in the path, at most 10. On a route that an import rule
	// accepts, the peer's AS.
	Prepend uint8 `json:"prepend,omitempty"`
}

// Announcement is one prefix that originates at this node.
type Announcement struct {
	// Prefix in its canonical form: no host bits.
	Prefix netip.Prefix `json:"prefix"`
	// NextHop is what peers send packets to; invalid means the session's own local address.
	NextHop netip.Addr `json:"nextHop,omitzero"`
	Attributes
}

// Route is what was learned of one prefix: the best paths, equal ones together (ECMP).
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	// Paths are 1 to Config.Paths, in the order of their next hops.
	Paths []Path `json:"paths"`
}

// Path is one way to a prefix.
type Path struct {
	// NextHop is as the peer told it, not resolved; a link-local one has the zone of the session's link. It may be
	// IPv6 for an IPv4 prefix (RFC 8950).
	NextHop netip.Addr `json:"nextHop"`
	// Peer told it.
	Peer netip.Addr `json:"peer"`
	// Kind is how.
	Kind Kind `json:"kind"`
	// Stale paths are kept through a peer's graceful restart, or through that of our own child.
	Stale bool `json:"stale,omitempty"`
}

// Kind is the sort of session that a path came by.
type Kind string

// The two kinds. Local routes are not learned.
const (
	Internal Kind = "internal"
	External Kind = "external"
)

// SessionState is the state of RFC 4271 §8.2.2, in lower case; only SessionEstablished carries routes.
//
//	idle → connect ⇄ active → opensent → openconfirm → established
//	  ↑____________________________________________________|
type SessionState string

// The six states, and one for a peer that has sent more prefixes than it may.
const (
	SessionIdle        SessionState = "idle"
	SessionConnect     SessionState = "connect"
	SessionActive      SessionState = "active"
	SessionOpenSent    SessionState = "opensent"
	SessionOpenConfirm SessionState = "openconfirm"
	SessionEstablished SessionState = "established"
	SessionOverLimit   SessionState = "prefix-limit"
)

// PeerStatus is how one session fares.
type PeerStatus struct {
	Name     string       `json:"name,omitempty"`
	Address  netip.Addr   `json:"address"`
	ASN      uint32       `json:"asn"`
	RouterID netip.Addr   `json:"routerID,omitzero"`
	State    SessionState `json:"state"`
	// Since is when State was entered, by the child's clock; zero if the session was never up.
	Since time.Time `json:"since,omitzero"`
	// LastError is why the session last ended, at most 256 bytes, printable.
	LastError string `json:"lastError,omitempty"`
	// BFD is "up", "down", "init", "admin-down", or empty where it is not asked for.
	BFD string `json:"bfd,omitempty"`
	// Received, Accepted and Advertised count prefixes, of both families.
	Received   uint64 `json:"received"`
	Accepted   uint64 `json:"accepted"`
	Advertised uint64 `json:"advertised"`
	// Flaps counts how many times the session has left established.
	Flaps uint64 `json:"flaps"`
}

// Status is how the whole speaker fares.
type Status struct {
	// Running says whether a child is up and has taken the configuration.
	Running bool `json:"running"`
	// Restarts counts the children that have died unasked; LastDeath is why the last one did.
	Restarts  int    `json:"restarts"`
	LastDeath string `json:"lastDeath,omitempty"`
	// LastError is what of the configuration could not be carried out.
	LastError string `json:"lastError,omitempty"`
	// Refused counts routes of the child's that the parent did not take, because no filter can have let them through.
	Refused uint64       `json:"refused,omitempty"`
	Peers   []PeerStatus `json:"peers,omitempty"`
}
