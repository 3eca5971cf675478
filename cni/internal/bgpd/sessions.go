package bgpd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/config/oc"
	"google.golang.org/protobuf/proto"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// families numbers the two by a table of the library's own.
func families() []uint32 {
	v4, v6 := oc.AfiSafiTypeToIntMap[oc.AFI_SAFI_TYPE_IPV4_UNICAST], oc.AfiSafiTypeToIntMap[oc.AFI_SAFI_TYPE_IPV6_UNICAST]
	return []uint32{uint32(v4), uint32(v6)}
}

func (s *speaker) removePeers(ctx context.Context, c bgp.Config) error {
	var errs []error
	for a, p := range s.peers {
		if _, ok := c.Peer(a); !ok {
			errs = append(errs, s.remove(ctx, a, p))
		}
	}
	return errors.Join(errs...)
}

// setPeers adds what is new, updates in place what the library can, and resets only sessions whose terms changed.
func (s *speaker) setPeers(ctx context.Context, c bgp.Config, restarting bool) error {
	var errs []error
	for _, p := range c.Peers {
		want := neighbor(c, p, restarting)
		have, ok := s.peers[p.Address]
		switch {
		case !ok:
			errs = append(errs, s.add(ctx, p.Address, want))
			if restarting && c.Restart.Enabled() {
				s.restarted[p.Address] = true
			}
		case proto.Equal(have, want):
		case proto.Equal(terms(have), terms(want)):
			errs = append(errs, s.update(ctx, p.Address, want))
		default:
			errs = append(errs, s.remove(ctx, p.Address, have), s.add(ctx, p.Address, want))
		}
	}
	return errors.Join(errs...)
}

// terms is p without what can change while its session is up: timers count from the next OPEN on, limits at once.
// Having restarted is no term either.
func terms(p *api.Peer) *api.Peer {
	t := proto.CloneOf(p)
	t.Timers, t.Bfd = nil, nil
	if t.GracefulRestart != nil {
		t.GracefulRestart.LocalRestarting = false
	}
	for _, a := range t.AfiSafis {
		a.PrefixLimits = nil
	}
	return t
}

func (s *speaker) add(ctx context.Context, a netip.Addr, p *api.Peer) error {
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: proto.CloneOf(p)}); err != nil {
		return fmt.Errorf("peer %v: %w", a, err)
	}
	s.peers[a] = p
	return nil
}

func (s *speaker) update(ctx context.Context, a netip.Addr, p *api.Peer) error {
	have := s.peers[a]
	if _, err := s.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: proto.CloneOf(p)}); err != nil {
		return fmt.Errorf("peer %v: %w", a, err)
	}
	s.peers[a] = p
	if limits(have) == limits(p) {
		return nil
	}
	// A peer that went over its limit stays down until the limit changes.
	if err := s.server.EnablePeer(ctx, &api.EnablePeerRequest{Address: a.String()}); err != nil {
		return fmt.Errorf("peer %v: %w", a, err)
	}
	return nil
}

func limits(p *api.Peer) (n uint32) {
	for _, a := range p.AfiSafis {
		n = a.PrefixLimits.MaxPrefixes
	}
	return n
}

// remove ends a session with Cease. The library forgets to take a removed peer's MD5 key off its listeners, and then
// a peer that comes back at that address without a password is never heard; so the key is taken off by an update
// first.
func (s *speaker) remove(ctx context.Context, a netip.Addr, p *api.Peer) error {
	if p.Conf.AuthPassword != "" {
		open := proto.CloneOf(p)
		open.Conf.AuthPassword = ""
		if _, err := s.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: open}); err != nil {
			return fmt.Errorf("peer %v: %w", a, err)
		}
	}
	delete(s.peers, a)
	delete(s.restarted, a)
	if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: a.String()}); err != nil {
		return fmt.Errorf("peer %v: %w", a, err)
	}
	return nil
}

// endRestart is called when the restart time is over: sessions that were not up by then begin, whenever they do, as
// fresh ones. The library would claim for ever that we have just restarted, and be silent for the deferral time.
func (s *speaker) endRestart(ctx context.Context, established func(netip.Addr) bool) error {
	var errs []error
	for a := range s.restarted {
		p := s.peers[a]
		if established(a) || p == nil || p.GracefulRestart == nil {
			continue
		}
		fresh := proto.CloneOf(p)
		fresh.GracefulRestart.LocalRestarting = false
		errs = append(errs, s.remove(ctx, a, p), s.add(ctx, a, fresh))
	}
	clear(s.restarted)
	return errors.Join(errs...)
}
