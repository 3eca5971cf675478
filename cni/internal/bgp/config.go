// Package bgp is what the agent and the BGP speaker say to each other, as values: the desired state (Config), what was
// learned (Route) and how the sessions fare (Status); with the pure decisions about them: whether a Config can be
// carried out (Validate), which nodes speak with which (Plan), and whether a route may be taken from a peer (Admits).
//
// Nothing here does input or output, and nothing here knows the library that speaks the protocol: that is linked only
// into berth-bgp. Durations are whole seconds on the wire of BGP; a fraction is refused, not rounded.
package bgp

import (
	"net/netip"
	"slices"
	"time"
)

// Port is BGP's own TCP port, RFC 4271 §8.
const Port = 179

// Config is all that one node's speaker is asked to be and to say. The zero Config is no BGP at all: no process runs.
type Config struct {
	// ASN is the node's autonomous system, 1–4294967295 (RFC 6793), but not 23456 (RFC 6793 §9), 0 (RFC 7607) or
	// the last of either width (RFC 7300).
	ASN uint32 `json:"asn"`
	// RouterID is the BGP identifier (RFC 6286): four bytes, not zero, unique in the ASN; in a v6-only cluster it is
	// no address of anything.
	RouterID netip.Addr `json:"routerID"`
	// Listen are the local addresses whose port Port takes connections. None: the speaker only opens them itself.
	Listen []netip.Addr `json:"listen,omitempty"`
	// Port is the TCP port listened on; 0 means 179. Below 1024 it needs CAP_NET_BIND_SERVICE, which the child has.
	Port uint16 `json:"port,omitempty"`
	// ClusterID names this reflector's cluster (RFC 4456 §7). Invalid (zero) means RouterID, the RFC's default.
	ClusterID netip.Addr `json:"clusterID,omitzero"`
	// Restart is what is asked of peers while this speaker is away, and given to peers that are away.
	Restart Restart `json:"restart,omitzero"`
	// Pools are the prefixes that the cluster's pods have their addresses from. Default filters accept from peers, and
	// tell peers, what lies inside of one of them or of Services, and nothing else.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Services are those that its services have them from. What one node says of them goes to external peers with
	// that node as next hop, whoever tells it: another may not have what serves it.
	Services []netip.Prefix `json:"services,omitempty"`
	// Peers are the sessions, at most one per address.
	Peers []Peer `json:"peers,omitempty"`
	// Announcements are the prefixes that originate here: the node's blocks, and service addresses.
	Announcements []Announcement `json:"announcements,omitempty"`
	// MaxPaths is the most next hops that one learned route has (ECMP); 0 means 16, 1 means no multipath.
	MaxPaths int `json:"maxPaths,omitempty"`
}

// Restart is graceful restart (RFC 4724, with the notifications of RFC 8538) and its long-lived form (RFC 9494).
type Restart struct {
	// Time is how long peers keep this speaker's routes after its session has ended without a word; 0 turns graceful
	// restart off. At most 4095 s, the field's width; the agent's own default is 120 s.
	Time time.Duration `json:"time,omitempty"`
	// Deferral is how long a speaker that did restart waits for its peers' End-of-RIB before it chooses paths; 0
	// means 10 s, at most 30 s. It is never waited for at a first start: a node that is silent is a node without pods.
	Deferral time.Duration `json:"deferral,omitempty"`
	// LongLived is how much longer stale routes are kept, as the last resort (RFC 9494); 0 turns it off. At most
	// 16777215 s, the field's width.
	LongLived time.Duration `json:"longLived,omitempty"`
}

// Enabled says whether graceful restart is on at all.
func (r Restart) Enabled() bool { return r.Time > 0 }

// DeferralTime is Deferral with its default.
func (r Restart) DeferralTime() time.Duration {
	if r.Deferral == 0 {
		return 10 * time.Second
	}
	return r.Deferral
}

// ListenPort is Port with its default.
func (c Config) ListenPort() uint16 {
	if c.Port == 0 {
		return Port
	}
	return c.Port
}

// Cluster is ClusterID with its default.
func (c Config) Cluster() netip.Addr {
	if !c.ClusterID.IsValid() {
		return c.RouterID
	}
	return c.ClusterID
}

// Paths is MaxPaths with its default.
func (c Config) Paths() int {
	if c.MaxPaths == 0 {
		return 16
	}
	return c.MaxPaths
}

// Enabled says whether c asks for BGP at all.
func (c Config) Enabled() bool { return c.ASN != 0 }

// Peer is the peer with that address, and whether there is one.
func (c Config) Peer(a netip.Addr) (Peer, bool) {
	for _, p := range c.Peers {
		if p.Address == a {
			return p, true
		}
	}
	return Peer{}, false
}

// NeedsNewSpeaker says whether going from old to c is more than a running speaker can do: another AS or identifier,
// or other listeners. Everything else is a difference that leaves unchanged sessions up.
func (c Config) NeedsNewSpeaker(old Config) bool {
	return c.ASN != old.ASN || c.RouterID != old.RouterID || c.ListenPort() != old.ListenPort() || !slices.Equal(c.Listen, old.Listen)
}
