package bgp

import (
	"net/netip"
	"testing"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// far is what the other speaker of a cell shall be, in no daemon's language.
type far struct {
	at       *node
	asn      uint32
	sessions []farSession
	routes   []farRoute
	gr       int // restart time in s; 0: off
	llgr     int // stale time in s; 0: off
	kernel   bool
}

// farSession is one of its neighbours.
type farSession struct {
	us, local netip.Addr
	asn       uint32 // ours
	families  []berth.Family
	password  string
	gtsm      int // hops
	multihop  int
	hold      int // s; 0: 9
	extNH     bool
	rrClient  bool // we are its client
	cluster   string
	addPaths  string // rx, tx or both
	bfd       bool
	passive   bool
	limit     int
}

// farRoute is a prefix that it originates.
type farRoute struct {
	prefix    string
	community string // 64512:7
	large     string // 64512:1:2
	med       int
	localPref int
	prepend   int
}

// learned is what the other speaker knows of a prefix, from its own tools.
type learned struct {
	nextHop, asPath, community, large, originator, clusters string
	med, localPref                                          int
	paths                                                   int
	stale                                                   bool
}

// speakerDaemon is BIRD or FRR in a node.
type speakerDaemon interface {
	name() string
	// start writes the configuration and runs it; configure replaces it while it runs.
	start(t testing.TB, f far)
	configure(t testing.TB, f far)
	// crash ends it without a word, resume starts it again, shutdown ends it as its operator would.
	crash()
	resume(t testing.TB)
	// route is what it knows of a prefix; ok is false if nothing.
	route(prefix string) (l learned, ok bool, err error)
	// established says whether its session with a is up, and since when or how often, as an opaque word that changes
	// when the session flaps.
	established(a netip.Addr) (up bool, epoch string, err error)
	// ask runs one line of its command language.
	ask(line string) (string, error)
}
