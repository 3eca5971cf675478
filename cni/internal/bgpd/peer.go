package bgpd

import (
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/berth-project/berth/cni/internal/bgp"
)

// neighbor is p in the library's form. restarting says that this speaker follows another whose routes are intact.
func neighbor(c bgp.Config, p bgp.Peer, restarting bool) *api.Peer {
	n := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Address.String(), PeerAsn: p.ASN, LocalAsn: p.LocalASN, AuthPassword: p.Password.Reveal(),
		},
		Transport: &api.Transport{RemotePort: uint32(p.RemotePort()), PassiveMode: p.Passive},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: seconds(p.HoldTime()), KeepaliveInterval: seconds(p.KeepaliveTime()), ConnectRetry: seconds(p.RetryTime()),
			IdleHoldTimeAfterReset: max(1, seconds(p.RetryTime())/2),
		}},
		RouteReflector: &api.RouteReflector{RouteReflectorClient: p.ReflectorClient, RouteReflectorClusterId: c.Cluster().String()},
		EbgpMultihop:   &api.EbgpMultihop{Enabled: p.Multihop > 0, MultihopTtl: uint32(p.Multihop)},
	}
	if p.Local.IsValid() {
		n.Transport.LocalAddress = p.Local.String()
	}
	if p.GTSM > 0 {
		// What comes from n hops away has a TTL of 255 less n-1 routers (RFC 5082 §3).
		n.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(p.GTSM)}
	}
	if b := p.BFD; b != nil {
		n.Bfd = &api.BfdPeerConfig{
			Enabled: true, DetectionMultiplier: uint32(b.Multiplier),
			DesiredMinimumTxInterval: uint32(b.Transmit.Microseconds()), RequiredMinimumReceive: uint32(b.Receive.Microseconds()),
		}
	}
	if r := c.Restart; r.Enabled() {
		n.GracefulRestart = &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(seconds(r.Time)), DeferralTime: uint32(seconds(r.DeferralTime())),
			NotificationEnabled: true, LonglivedEnabled: r.LongLived > 0, LocalRestarting: restarting,
		}
	}
	for _, f := range p.Speaks() {
		n.AfiSafis = append(n.AfiSafis, family(c, p, f))
	}
	return n
}

func family(c bgp.Config, p bgp.Peer, f bgp.Family) *api.AfiSafi {
	fam := apiFamily(f)
	a := &api.AfiSafi{
		Config:       &api.AfiSafiConfig{Family: fam, Enabled: true},
		AddPaths:     &api.AddPaths{Config: &api.AddPathsConfig{Receive: p.AddPathsReceive, SendMax: uint32(p.AddPathsSend)}},
		PrefixLimits: &api.PrefixLimit{Family: fam, MaxPrefixes: p.PrefixLimit(), ShutdownThresholdPct: 80},
	}
	if r := c.Restart; r.Enabled() {
		a.MpGracefulRestart = &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}}
		a.LongLivedGracefulRestart = &api.LongLivedGracefulRestart{Config: &api.LongLivedGracefulRestartConfig{
			Enabled: r.LongLived > 0, RestartTime: uint32(seconds(r.LongLived)),
		}}
	}
	return a
}

func apiFamily(f bgp.Family) *api.Family {
	if f == bgp.IPv6 {
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	}
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }
