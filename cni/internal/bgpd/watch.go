package bgpd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

// watcher collects what the library says has changed until someone asks. Nothing queues up: a prefix that changes a
// thousand times before it is asked for is one prefix.
type watcher struct {
	wake chan struct{} // holds one

	mu     sync.Mutex
	dirty  map[netip.Prefix]bool
	peers  map[netip.Addr]*peerState
	synced map[netip.Addr]bool // not reported yet
	states bool                // some session's state changed
}

// peerState is what only events tell of a session.
type peerState struct {
	established bool
	since       time.Time
	flaps       uint64
	lastError   string
	eor         map[packet.Family]bool // End-of-RIB came
	expected    int                    // how many are to come; 0: the peer cannot say it
	done        bool                   // synced was said in this session
}

func newWatcher() *watcher {
	return &watcher{
		wake: make(chan struct{}, 1), dirty: map[netip.Prefix]bool{},
		peers: map[netip.Addr]*peerState{}, synced: map[netip.Addr]bool{},
	}
}

// watch subscribes until ctx ends.
func (w *watcher) watch(ctx context.Context, s *server.BgpServer) error {
	return s.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnBestPath:   w.onPaths,
		OnPathEor:    w.onEOR,
		OnPeerUpdate: w.onPeer,
	}, server.WatchBestPath(false), server.WatchEor(false), server.WatchPeer())
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) onPaths(paths []*apiutil.Path, _ time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range paths {
		if p == nil {
			continue
		}
		if n, ok := p.Nlri.(*packet.IPAddrPrefix); ok {
			w.dirty[n.Prefix] = true
		}
	}
	w.poke()
}

func (w *watcher) peer(a netip.Addr) *peerState {
	p := w.peers[a]
	if p == nil {
		p = &peerState{eor: map[packet.Family]bool{}}
		w.peers[a] = p
	}
	return p
}

func (w *watcher) onEOR(path *apiutil.Path, _ time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peer(path.PeerAddress)
	p.eor[path.Family] = true
	w.checkSynced(path.PeerAddress, p)
}

func (w *watcher) checkSynced(a netip.Addr, p *peerState) {
	if p.established && !p.done && p.expected > 0 && len(p.eor) >= p.expected {
		p.done = true
		w.synced[a] = true
		w.poke()
	}
}

func (w *watcher) onPeer(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if e.Type == apiutil.PEER_EVENT_END_OF_INIT {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	st := e.Peer.State
	p := w.peer(st.NeighborAddress)
	up := st.SessionState == packet.BGP_FSM_ESTABLISHED
	switch {
	case up && !p.established:
		p.established, p.since, p.done = true, at, false
		p.expected = endsOfRIB(st.RemoteCap, st.LocalCap)
		clear(p.eor)
	case !up && p.established:
		p.established, p.since = false, at
		p.flaps++
	}
	switch st.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_UNSPECIFIED, api.PeerState_DISCONNECT_REASON_IDLE_TIMER_EXPIRED:
		// no end of a session, but a step to the next one
	default:
		p.lastError = st.DisconnectMessage
	}
	w.states = true
	w.poke()
}

// endsOfRIB is how many families the peer will end with End-of-RIB, by both sides' OPEN: those that both speak, for the
// others are not exchanged (RFC 4760 §8, RFC 4724 §4); 0 without the peer's graceful restart capability, and where
// nothing is exchanged.
func endsOfRIB(theirs, ours []packet.ParameterCapabilityInterface) (n int) {
	says := slices.ContainsFunc(theirs, func(c packet.ParameterCapabilityInterface) bool {
		_, ok := c.(*packet.CapGracefulRestart)
		return ok
	})
	if !says {
		return 0
	}
	both := speaks(ours)
	for f := range speaks(theirs) {
		if both[f] {
			n++
		}
	}
	return n
}

// speaks are the families of an OPEN; without a word about them it is IPv4 alone (RFC 4760 §8).
func speaks(caps []packet.ParameterCapabilityInterface) map[packet.Family]bool {
	out := map[packet.Family]bool{}
	for _, c := range caps {
		if mp, ok := c.(*packet.CapMultiProtocol); ok {
			out[mp.CapValue] = true
		}
	}
	if len(out) == 0 {
		out[packet.RF_IPv4_UC] = true
	}
	return out
}

// quiet is after how long of an established session a peer that cannot say End-of-RIB counts as synced.
const quiet = 3 * time.Second

// age notes peers that have been up for long enough.
func (w *watcher) age(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for a, p := range w.peers {
		if p.established && !p.done && p.expected == 0 && now.Sub(p.since) >= quiet {
			p.done = true
			w.synced[a] = true
			w.poke()
		}
	}
}

// take is up to a batch of dirty prefixes and, if none is left after them, the peers that are synced.
func (w *watcher) take() (dirty []netip.Prefix, synced []netip.Addr, states bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.dirty {
		if len(dirty) == channel.MaxBatch {
			w.poke()
			return dirty, nil, false
		}
		dirty = append(dirty, p)
		delete(w.dirty, p)
	}
	for a := range w.synced {
		synced = append(synced, a)
	}
	clear(w.synced)
	states, w.states = w.states, false
	return dirty, synced, states
}

// routes looks prefixes up in the library's table.
func routes(s *server.BgpServer, prefixes []netip.Prefix, c bgp.Config) (*channel.Routes, error) {
	out := &channel.Routes{}
	look := map[packet.Family][]*apiutil.LookupPrefix{}
	left := map[netip.Prefix]bool{}
	for _, p := range prefixes {
		fam := packet.RF_IPv4_UC
		if p.Addr().Is6() {
			fam = packet.RF_IPv6_UC
		}
		look[fam] = append(look[fam], &apiutil.LookupPrefix{Prefix: p.String()})
		left[p] = true
	}
	for fam, list := range look {
		req := apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: fam, Prefixes: list}
		err := s.ListPath(req, func(n packet.NLRI, paths []*apiutil.Path) {
			x, ok := n.(*packet.IPAddrPrefix)
			if !ok {
				return
			}
			if r := (bgp.Route{Prefix: x.Prefix, Paths: best(x.Prefix, paths, c)}); len(r.Paths) > 0 {
				out.Changed = append(out.Changed, r)
				delete(left, x.Prefix)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("look up %d prefixes: %w", len(list), err)
		}
	}
	for p := range left {
		out.Withdrawn = append(out.Withdrawn, p)
	}
	return out, nil
}

// best are the paths that share the first place and can be gone; none if the first is our own announcement.
func best(prefix netip.Prefix, paths []*apiutil.Path, c bgp.Config) (out []bgp.Path) {
	for _, p := range paths {
		if p == nil || !p.Best || p.IsNexthopInvalid {
			continue
		}
		if !p.PeerAddress.IsValid() {
			return nil
		}
		nh := nextHop(p)
		if slices.ContainsFunc(out, func(q bgp.Path) bool { return q.NextHop == nh }) {
			continue
		}
		kind := bgp.Internal
		if peer, ok := c.Peer(p.PeerAddress); ok && !peer.Internal(c) {
			kind = bgp.External
		}
		path := bgp.Path{NextHop: nh, Peer: p.PeerAddress, Kind: kind, Stale: p.Stale}
		if path.Plausible(prefix) != nil {
			continue
		}
		out = append(out, path)
	}
	slices.SortFunc(out, func(a, b bgp.Path) int { return a.NextHop.Compare(b.NextHop) })
	return out[:min(len(out), bgp.MaxPathsLimit)] // Config.MaxPaths is the agent's to apply: it changes without a word from a peer
}

// nextHop is what the attributes say for the path's own family: an UPDATE may carry routes of both, each with its next
// hop. A link-local one, which is always on the session's link, is preferred to a global one (RFC 2545 §3).
func nextHop(p *apiutil.Path) (nh netip.Addr) {
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *packet.PathAttributeNextHop:
			if !nh.IsValid() && p.Family == packet.RF_IPv4_UC {
				nh = a.Value
			}
		case *packet.PathAttributeMpReachNLRI:
			if a.AFI != p.Family.Afi() {
				continue
			}
			nh = a.Nexthop
			if p.PeerAddress.Zone() != "" && a.LinkLocalNexthop.IsValid() {
				nh = a.LinkLocalNexthop
			}
		}
	}
	if nh.Is6() && nh.IsLinkLocalUnicast() {
		nh = nh.WithZone(p.PeerAddress.Zone())
	}
	return nh.Unmap()
}
