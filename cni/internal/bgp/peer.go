package bgp

import (
	"log/slog"
	"net/netip"
	"time"
)

// Family is an address family of unicast routes (RFC 4760).
type Family string

// The two families that a pod network needs.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// Peer is one session. Address is its key: two speakers with the same address are one peer.
type Peer struct {
	// Name is what people call it, a node's name or "rack-4-left"; it is shown, never compared.
	Name string `json:"name,omitempty"`
	// Address is where the peer is; a link-local one carries its zone (an interface's name).
	Address netip.Addr `json:"address"`
	// ASN is the peer's; that of Config.ASN makes the session internal.
	ASN uint32 `json:"asn"`
	// LocalASN is told to this peer in place of Config.ASN; 0 means Config.ASN. External sessions only.
	LocalASN uint32 `json:"localASN,omitempty"`
	// Port is the peer's TCP port; 0 means 179.
	Port uint16 `json:"port,omitempty"`
	// Local is the address that connections to this peer come from; invalid means the kernel's choice.
	Local netip.Addr `json:"local,omitzero"`
	// Passive waits for the peer to connect.
	Passive bool `json:"passive,omitempty"`
	// Password is the key of TCP MD5 signatures (RFC 2385), at most 80 bytes; none if empty. It is left out of JSON
	// and of every form in which a Peer can be printed.
	Password Secret `json:"-"`
	// GTSM drops the peer's packets unless their TTL is 255 less the hops between (RFC 5082); 0 is off, 1 is a
	// neighbour on the link, n one that is n hops away.
	GTSM uint8 `json:"gtsm,omitempty"`
	// Multihop is the TTL of packets to an external peer that is no neighbour on the link; 0 means it is one. It
	// cannot be together with GTSM, which says the same and more.
	Multihop uint8 `json:"multihop,omitempty"`
	// BFD watches the path to this peer (RFC 5881); nil does not.
	BFD *BFD `json:"bfd,omitempty"`
	// Hold is how long a silent peer counts as alive (RFC 4271 §4.2); 0 means 90 s, else at least 3 s.
	Hold time.Duration `json:"hold,omitempty"`
	// Keepalive is the time between signs of life; 0 means a third of Hold.
	Keepalive time.Duration `json:"keepalive,omitempty"`
	// ConnectRetry is the time between attempts to connect; 0 means 10 s.
	ConnectRetry time.Duration `json:"connectRetry,omitempty"`
	// Families are exchanged; none means the family of Address.
	Families []Family `json:"families,omitempty"`
	// ExtendedNextHop carries IPv4 routes with IPv6 next hops (RFC 8950); the session must be over IPv6.
	ExtendedNextHop bool `json:"extendedNextHop,omitempty"`
	// ReflectorClient reflects internal routes to and from this peer (RFC 4456). Internal sessions only.
	ReflectorClient bool `json:"reflectorClient,omitempty"`
	// NextHopSelf tells internal peers this speaker's address as the next hop of routes learned from external ones.
	NextHopSelf bool `json:"nextHopSelf,omitempty"`
	// AddPathsReceive takes several paths per prefix from this peer (RFC 7911).
	AddPathsReceive bool `json:"addPathsReceive,omitempty"`
	// AddPathsSend tells this peer so many paths per prefix (RFC 7911); 0 tells the best alone.
	AddPathsSend uint8 `json:"addPathsSend,omitempty"`
	// MaxPrefixes ends the session when the peer says more of one family; 0 means 100,000.
	MaxPrefixes uint32 `json:"maxPrefixes,omitempty"`
	// Import are rules for what the peer says, the first that matches decides. What matches none is accepted if it
	// lies inside of a pool and is no default route.
	Import []Rule `json:"import,omitempty"`
	// Export are rules for what the peer is told, likewise.
	Export []Rule `json:"export,omitempty"`
}

// BFD is bidirectional forwarding detection over one hop, asynchronous, without authentication (RFC 5880, 5881). With
// graceful restart it contradicts it: a path that BFD calls down is flushed, not kept.
type BFD struct {
	// Transmit is the time between our packets, 10 ms – 60 s.
	Transmit time.Duration `json:"transmit"`
	// Receive is the least time between the peer's packets that we can take, 10 ms – 60 s.
	Receive time.Duration `json:"receive"`
	// Multiplier packets in a row must be lost before the path is down, 1–255.
	Multiplier uint8 `json:"multiplier"`
}

// Secret is a password that cannot be printed, logged or marshalled by accident.
type Secret struct{ value string }

// NewSecret wraps a password.
func NewSecret(s string) Secret { return Secret{s} }

// Reveal is the password itself, for the one place that hands it on.
func (s Secret) Reveal() string { return s.value }

// String hides the password; it says whether there is one.
func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return "(secret)"
}

// GoString hides the password from %#v.
func (s Secret) GoString() string { return `bgp.Secret{` + s.String() + `}` }

// LogValue hides the password from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the password from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// HoldTime is Hold with its default.
func (p Peer) HoldTime() time.Duration { return orElse(p.Hold, 90*time.Second) }

// KeepaliveTime is Keepalive with its default.
func (p Peer) KeepaliveTime() time.Duration {
	return orElse(p.Keepalive, max(time.Second, (p.HoldTime()/3).Truncate(time.Second)))
}

// RetryTime is ConnectRetry with its default.
func (p Peer) RetryTime() time.Duration { return orElse(p.ConnectRetry, 10*time.Second) }

// RemotePort is Port with its default.
func (p Peer) RemotePort() uint16 { return orElse(p.Port, Port) }

// PrefixLimit is MaxPrefixes with its default.
func (p Peer) PrefixLimit() uint32 { return orElse(p.MaxPrefixes, 100_000) }

// Speaks are Families with their default.
func (p Peer) Speaks() []Family {
	if len(p.Families) == 0 {
		return []Family{FamilyOf(p.Address)}
	}
	return p.Families
}

// Local or global: the AS that this peer sees.
func (p Peer) localASN(c Config) uint32 { return orElse(p.LocalASN, c.ASN) }

// Internal says whether the session is within one AS.
func (p Peer) Internal(c Config) bool { return p.ASN == p.localASN(c) }

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
