package bgp

import (
	"errors"
	"fmt"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// sessionCells are about who speaks with whom, over what.
func sessionCells() []cell {
	plain := func(asn uint32, v6 bool) func(*testing.T, speakerDaemon) {
		return func(t *testing.T, d speakerDaemon) {
			p := newPair(t, d, asn, v6)
			p.exchanged(t, p.start(t))
		}
	}
	return []cell{
		{name: "eBGP over IPv4", run: plain(64513, false)},
		{name: "eBGP over IPv6", run: plain(64513, true)},
		{name: "iBGP over IPv4", run: plain(64512, false), slow: true},
		{name: "iBGP over IPv6", run: plain(64512, true)},
		{name: "IPv4 over IPv6 (RFC 8950)", run: extendedNextHop},
		{name: "4-byte AS", run: fourByteAS},
		{name: "local AS", run: localAS, slow: true},
		{name: "MD5", run: md5},
		{name: "MD5 mismatch", run: md5Mismatch},
		{name: "MD5 changed by reload", run: md5Reload, slow: true},
		{name: "GTSM", run: gtsm},
		{name: "GTSM refuses a far peer", run: gtsmRefuses, slow: true},
		{name: "multihop", run: multihop},
		{name: "collision", run: collision, slow: true},
		{name: "BFD", run: bfd},
	}
}

func extendedNextHop(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, true)
	both := []berth.Family{berth.IPv4, berth.IPv6}
	p.far.sessions[0].families, p.far.sessions[0].extNH = both, true
	p.config.Peers[0].Families, p.config.Peers[0].ExtendedNextHop = both, true
	p.exchanged(t, p.start(t))
}

func fourByteAS(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 4200000002, false)
	p.config.ASN, p.far.sessions[0].asn = 4200000001, 4200000001
	p.exchanged(t, p.start(t))
	eventually(t, 5*time.Second, hasFar(d, "10.244.1.0/24", func(l learned) error { return want("AS path", l.asPath, 4200000001) }))
}

func localAS(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.config.Peers[0].LocalASN, p.far.sessions[0].asn = 64999, 64999
	p.exchanged(t, p.start(t))
	eventually(t, 5*time.Second, hasFar(d, "10.244.1.0/24", func(l learned) error { return want("AS path", l.asPath, 64999) }))
}

const canary = "canary-3141592653"

func md5(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.sessions[0].password, p.config.Peers[0].Password = canary, berth.NewSecret(canary)
	u := p.start(t)
	p.exchanged(t, u)
	u.logLacks(t, canary)
}

func md5Mismatch(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.sessions[0].password, p.config.Peers[0].Password = "another", berth.NewSecret(canary)
	u := p.start(t)
	never(t, 4*time.Second, "a session with another password", func() bool { return u.established(p.at.v4)() == nil })
	u.logLacks(t, canary)
}

func md5Reload(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.sessions[0].password, p.config.Peers[0].Password = canary, berth.NewSecret(canary)
	// The far end connects, so that our listener's key is what decides.
	p.config.Peers[0].Passive = true
	u := p.start(t)
	p.exchanged(t, u)
	c := p.config
	c.Peers = []berth.Peer{p.config.Peers[0]}
	c.Peers[0].Password = berth.NewSecret("wrong")
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error { return want("state", u.peer(p.at.v4).State != berth.SessionEstablished, true) })
	c.Peers = []berth.Peer{p.config.Peers[0]}
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	p.exchanged(t, u)
	u.logLacks(t, canary)
}

func gtsm(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.sessions[0].gtsm, p.config.Peers[0].GTSM = 1, 1
	p.exchanged(t, p.start(t))
}

func gtsmRefuses(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.config.Peers[0].GTSM = 1 // the far end sends a TTL of 1 or 64
	u := p.start(t)
	never(t, 4*time.Second, "a session with packets that may be from anywhere", func() bool { return u.established(p.at.v4)() == nil })
}

func multihop(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	ours, theirs := ip("10.99.0.1"), ip("10.99.0.2")
	p.us.sh(t, "ip addr add 10.99.0.1/32 dev lo")
	p.at.sh(t, "ip addr add 10.99.0.2/32 dev lo")
	p.us.sh(t, "ip route add 10.99.0.2/32 via 10.0.0.2")
	p.at.sh(t, "ip route add 10.99.0.1/32 via 10.0.0.1")
	s := &p.far.sessions[0]
	s.us, s.local, s.multihop = ours, theirs, 3
	c := &p.config.Peers[0]
	c.Address, c.Local, c.Multihop = theirs, ours, 3
	p.config.Listen = append(p.config.Listen, ours)
	u := p.start(t)
	eventually(t, 25*time.Second, u.has("10.244.2.0/24", theirs))
	eventually(t, 25*time.Second, hasFar(d, "10.244.1.0/24", nil))
}

// collision is both ends connecting at the same moment, again and again; one session must be left (RFC 4271 §6.8).
func collision(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	u := p.start(t)
	for range 4 {
		p.exchanged(t, u)
		_, epoch, err := d.established(p.us.v4)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		up, now, err := d.established(p.us.v4)
		if err != nil || !up || now != epoch {
			t.Fatalf("the session does not last: %v, %q then %q (%v)", up, epoch, now, err)
		}
		if err := u.Set(berth.Config{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, func() error {
			up, _, err := d.established(p.us.v4)
			return errors.Join(err, want("their session", up, false), want("our child", u.Status().Running, false))
		})
		if err := u.Set(p.config); err != nil {
			t.Fatal(err)
		}
	}
}

func bfd(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.sessions[0].bfd, p.far.sessions[0].hold = true, 90
	p.config.Peers[0].Hold = 90 * time.Second
	p.config.Peers[0].BFD = &berth.BFD{Transmit: 100 * time.Millisecond, Receive: 100 * time.Millisecond, Multiplier: 3}
	u := p.start(t)
	p.exchanged(t, u)
	eventually(t, 20*time.Second, func() error { return want("BFD", u.peer(p.at.v4).BFD, "up") })
	p.at.sh(t, "ip link set eth0 down")
	eventually(t, 4*time.Second, func() error {
		if u.established(p.at.v4)() == nil {
			return fmt.Errorf("the session lives on a dead path: %+v", u.peer(p.at.v4))
		}
		return u.lacks("10.244.2.0/24")()
	})
}
