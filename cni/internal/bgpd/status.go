package bgpd

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

// countAdvertisedUpTo so many peers: counting walks all routes for each.
const countAdvertisedUpTo = 16

func (d *daemon) status(ctx context.Context) (*channel.Peers, error) {
	out := &channel.Peers{}
	req := &api.ListPeerRequest{EnableAdvertised: len(d.speaker.peers) <= countAdvertisedUpTo}
	err := d.speaker.server.ListPeer(ctx, req, func(p *api.Peer) {
		a, err := netip.ParseAddr(p.GetConf().GetNeighborAddress())
		if err != nil {
			return
		}
		conf, ok := d.speaker.now.Peer(a)
		if !ok {
			return
		}
		s := bgp.PeerStatus{Name: conf.Name, Address: a, ASN: conf.ASN, State: state(p.GetState()), BFD: bfd(conf, p.GetState())}
		if id, err := netip.ParseAddr(p.GetState().GetRouterId()); err == nil && !id.IsUnspecified() {
			s.RouterID = id
		}
		for _, f := range p.GetAfiSafis() {
			s.Received += f.GetState().GetReceived()
			s.Accepted += f.GetState().GetAccepted()
			s.Advertised += f.GetState().GetAdvertised()
		}
		d.watcher.fill(&s)
		out.Peers = append(out.Peers, s)
	})
	slices.SortFunc(out.Peers, func(a, b bgp.PeerStatus) int { return cmp.Or(a.Address.Compare(b.Address)) })
	return out, err
}

// fill adds what only events told.
func (w *watcher) fill(s *bgp.PeerStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.peers[s.Address]; p != nil {
		s.Since, s.Flaps, s.LastError = p.since, p.flaps, p.lastError
	}
}

func state(s *api.PeerState) bgp.SessionState {
	if s.GetAdminState() == api.PeerState_ADMIN_STATE_PFX_CT {
		return bgp.SessionOverLimit
	}
	switch s.GetSessionState() {
	case api.PeerState_SESSION_STATE_CONNECT:
		return bgp.SessionConnect
	case api.PeerState_SESSION_STATE_ACTIVE:
		return bgp.SessionActive
	case api.PeerState_SESSION_STATE_OPENSENT:
		return bgp.SessionOpenSent
	case api.PeerState_SESSION_STATE_OPENCONFIRM:
		return bgp.SessionOpenConfirm
	case api.PeerState_SESSION_STATE_ESTABLISHED:
		return bgp.SessionEstablished
	}
	return bgp.SessionIdle
}

func bfd(p bgp.Peer, s *api.PeerState) string {
	if p.BFD == nil {
		return ""
	}
	switch s.GetBfdState().GetSessionState() {
	case api.BfdSessionState_BFD_SESSION_STATE_UP:
		return "up"
	case api.BfdSessionState_BFD_SESSION_STATE_INIT:
		return "init"
	case api.BfdSessionState_BFD_SESSION_STATE_ADMIN_DOWN:
		return "admin-down"
	}
	return "down"
}
