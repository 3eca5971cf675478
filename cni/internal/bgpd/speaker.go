// Package bgpd is berth-bgp: BGP, spoken by gobgp, in a process that can do nothing else. It is told what to be over
// one socket, reports what it learns over the same, and touches no route of the kernel.
//
// The library is linked here and nowhere else. What peers send is parsed in this process alone, so that a panic in a
// parser costs a restart in which peers keep our routes, and a break-in costs what an unprivileged user may do who
// can open ports below 1024.
//
//	channel ─▶ speaker (difference: peers, policy, announcements) ─▶ gobgp ─▶ watcher ─▶ channel
package bgpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"
	"google.golang.org/protobuf/proto"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// speaker is gobgp with what it was last told. Its methods are called by one goroutine.
type speaker struct {
	log       *slog.Logger
	started   func(context.Context, *server.BgpServer) error // after the start, before the first peer
	server    *server.BgpServer                              // nil until the first configuration
	now       bgp.Config
	policy    *api.SetPoliciesRequest
	peers     map[netip.Addr]*api.Peer
	restarted map[netip.Addr]bool // peers that are told, until a session is up, that we have restarted
}

func newSpeaker(log *slog.Logger, started func(context.Context, *server.BgpServer) error) *speaker {
	return &speaker{log: log, started: started, peers: map[netip.Addr]*api.Peer{}, restarted: map[netip.Addr]bool{}}
}

// set makes the speaker what c says. What fails is left out and told in the error; the rest is done. A session whose
// own terms did not change stays up.
func (s *speaker) set(ctx context.Context, c bgp.Config, restarting bool) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if s.server == nil {
		if err := s.start(ctx, c); err != nil {
			return err
		}
	} else if c.NeedsNewSpeaker(s.now) {
		return errors.New("the AS, identifier or listeners changed: this needs a new speaker")
	}
	old := s.now
	s.now = c
	errs := []error{s.removePeers(ctx, c)}
	changed, err := s.setPolicy(ctx, c)
	errs = append(errs, err, s.announce(old, c), s.setPeers(ctx, c, restarting))
	if changed {
		// Adj-RIB-In is kept, so that routes are judged anew without asking peers (RFC 2918) for them.
		errs = append(errs, s.server.ResetPeer(ctx, &api.ResetPeerRequest{Soft: true, Direction: api.ResetPeerRequest_DIRECTION_BOTH}))
	}
	return errors.Join(errs...)
}

func (s *speaker) start(ctx context.Context, c bgp.Config) error {
	srv := server.NewBgpServer(server.LoggerOption(s.log, nil))
	go srv.Serve()
	g := &api.Global{
		Asn: c.ASN, RouterId: c.RouterID.String(), ListenPort: -1, UseMultiplePaths: true,
		Families: families(),
	}
	if len(c.Listen) > 0 {
		g.ListenPort = int32(c.ListenPort())
		for _, a := range c.Listen {
			g.ListenAddresses = append(g.ListenAddresses, a.String())
		}
	}
	if err := srv.StartBgp(ctx, &api.StartBgpRequest{Global: g}); err != nil {
		srv.Stop()
		return fmt.Errorf("listen on %v port %d: %w", c.Listen, c.ListenPort(), err)
	}
	// The library's snapshot for late subscribers leaves routes out: subscribe while there are none.
	if err := s.started(ctx, srv); err != nil {
		srv.Stop()
		return fmt.Errorf("watch: %w", err)
	}
	s.server = srv
	return nil
}

func (s *speaker) setPolicy(ctx context.Context, c bgp.Config) (changed bool, err error) {
	want := policies(c)
	if s.policy != nil && proto.Equal(want, s.policy) {
		return false, nil
	}
	if err := s.server.SetPolicies(ctx, proto.CloneOf(want)); err != nil {
		return false, fmt.Errorf("filters: %w", err)
	}
	if s.policy == nil {
		for _, a := range assignments() {
			if err := s.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: a}); err != nil {
				return false, fmt.Errorf("filters: %w", err)
			}
		}
	}
	first := s.policy == nil
	s.policy = want
	return !first, nil
}

func (s *speaker) announce(old, c bgp.Config) error {
	had := map[netip.Prefix]bgp.Announcement{}
	for _, a := range old.Announcements {
		had[a.Prefix] = a
	}
	var add, remove []*apiutil.Path
	var errs []error
	for _, a := range c.Announcements {
		before, ok := had[a.Prefix]
		delete(had, a.Prefix)
		if ok && reflect.DeepEqual(before, a) {
			continue
		}
		p, err := announcement(a)
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", a.Prefix, err))
			continue
		}
		add = append(add, p)
	}
	for _, a := range had {
		p, err := announcement(a)
		if err == nil {
			remove = append(remove, p)
		}
	}
	if len(add) > 0 {
		_, err := s.server.AddPath(apiutil.AddPathRequest{Paths: add})
		errs = append(errs, err)
	}
	if len(remove) > 0 {
		errs = append(errs, s.server.DeletePath(apiutil.DeletePathRequest{Paths: remove}))
	}
	return errors.Join(errs...)
}

// stop ends all sessions: with Cease, or without a word, so that peers keep our routes.
func (s *speaker) stop(graceful bool) error {
	if s.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return s.server.StopBgp(ctx, &api.StopBgpRequest{AllowGracefulRestart: graceful})
}
