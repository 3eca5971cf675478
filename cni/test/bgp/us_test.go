package bgp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	berth "github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/speaker"
)

// childUser is whom berth-bgp runs as in tests: nobody else is.
const childUser = 64179

// us is a Speaker in a node, with what it logs.
type us struct {
	*speaker.Speaker
	at     *node
	config berth.Config
	log    *lockedBuffer
	stop   func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// pools of every lab: what the default filters let through.
func pools() []netip.Prefix { return []netip.Prefix{pfx("10.244.0.0/16"), pfx("fd00:244::/32")} }

// ourConfig is the least that a cell begins with: AS 64512, one block of each family.
func ourConfig(x *node, peers ...berth.Peer) berth.Config {
	return berth.Config{
		ASN: 64512, RouterID: netip.AddrFrom4([4]byte{192, 0, 2, byte(x.n)}), Listen: []netip.Addr{x.v4, x.v6}, Pools: pools(),
		Peers: peers,
		Announcements: []berth.Announcement{
			{Prefix: pfx(fmt.Sprintf("10.244.%d.0/24", x.n))}, {Prefix: pfx(fmt.Sprintf("fd00:244:%x::/64", x.n))},
		},
	}
}

// startUs runs a Speaker in x until the test ends.
func startUs(t testing.TB, x *node, c berth.Config, kept []berth.Route) *us {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	u := &us{at: x, config: c, log: &lockedBuffer{}}
	u.Speaker = speaker.New(speaker.Options{
		Program: bin, UID: childUser, GID: childUser, Kept: kept,
		Log: slog.New(slog.NewTextHandler(u.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Do(func() error { return u.Run(ctx) }) }()
	var once sync.Once
	u.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		u.stop()
		if t.Failed() {
			t.Logf("status: %+v\nroutes: %+v\nlog:\n%s", u.Status(), u.Routes(), tail(u.log.String(), 4000))
		}
	})
	return u
}

// peer is the status of the session with a.
func (u *us) peer(a netip.Addr) berth.PeerStatus {
	for _, p := range u.Status().Peers {
		if p.Address == a {
			return p
		}
	}
	return berth.PeerStatus{}
}

func (u *us) established(a netip.Addr) func() error {
	return func() error {
		if p := u.peer(a); p.State != berth.SessionEstablished {
			return fmt.Errorf("the session with %v is %q: %s", a, p.State, p.LastError)
		}
		return nil
	}
}

// route is what is known of a prefix.
func (u *us) route(p string) (berth.Route, bool) {
	for _, r := range u.Routes() {
		if r.Prefix == pfx(p) {
			return r, true
		}
	}
	return berth.Route{}, false
}

// has wants the prefix by these next hops, none of them stale.
func (u *us) has(p string, nextHops ...netip.Addr) func() error {
	return func() error {
		r, ok := u.route(p)
		if !ok {
			return fmt.Errorf("%s is not known", p)
		}
		var got []netip.Addr
		for _, x := range r.Paths {
			if x.Stale {
				return fmt.Errorf("%s is stale: %+v", p, r)
			}
			got = append(got, x.NextHop)
		}
		if fmt.Sprint(got) != fmt.Sprint(nextHops) {
			return fmt.Errorf("%s goes by %v, want %v", p, got, nextHops)
		}
		return nil
	}
}

func (u *us) lacks(p string) func() error {
	return func() error {
		if r, ok := u.route(p); ok {
			return fmt.Errorf("%s is known: %+v", p, r)
		}
		return nil
	}
}

// never fails if what comes true within d.
func never(t testing.TB, d time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if is() {
			t.Fatalf("%s", what)
		}
	}
}

// logLacks is for secrets.
func (u *us) logLacks(t testing.TB, secret string) {
	t.Helper()
	if strings.Contains(u.log.String(), secret) {
		t.Errorf("the log has the password: %s", u.log)
	}
	if s := fmt.Sprintf("%+v %#v", u.Status(), u.config); strings.Contains(s, secret) {
		t.Errorf("the status or configuration shows the password: %s", s)
	}
}
