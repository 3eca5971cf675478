package bgp

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	berth "github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
)

// ours is the route protocol of these tests' routes; BIRD's is 12.
const (
	protoOurs = 0xbe
	protoBIRD = 12
)

// applier is the least that an agent does with learned routes: the difference to what it did before, in one batch,
// over the one link of a lab's node. The agent's own applier does more.
type applier struct {
	conn  *nlwire.Conn
	index int32
	have  map[netip.Prefix]netip.Addr
}

func (a *applier) apply(routes []berth.Route) error {
	var ops []nlwire.Op
	seen := make(map[netip.Prefix]bool, len(routes))
	for _, r := range routes {
		via := r.Paths[0].NextHop
		seen[r.Prefix] = true
		if a.have[r.Prefix] == via {
			continue
		}
		a.have[r.Prefix] = via
		ops = append(ops, rtnl.AddRoute(rtnl.Route{Dst: r.Prefix, Gateway: via, Index: a.index, Protocol: protoOurs}))
	}
	for p, via := range a.have {
		if !seen[p] {
			delete(a.have, p)
			ops = append(ops, rtnl.DelRoute(rtnl.Route{Dst: p, Gateway: via, Index: a.index, Protocol: protoOurs}))
		}
	}
	for len(ops) > 0 {
		n := min(len(ops), 100) // more answers than that do not fit into a socket
		if err := a.conn.Do(ops[:n]); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// runApplier keeps the kernel of u's node as u knows it, until stop is closed.
func runApplier(u *us, stop <-chan struct{}) error {
	return u.at.Do(func() error {
		conn, err := nlwire.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		link, err := conn.Query("eth0", rtnl.GetLink("eth0"))
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		l, ok := rtnl.ParseLink(link[0])
		if !ok {
			return errors.Join(errors.New("eth0 is no link"), conn.Close())
		}
		a := &applier{conn: conn, index: l.Index, have: map[netip.Prefix]netip.Addr{}}
		for {
			select {
			case <-stop:
				return conn.Close()
			case <-u.Changed():
				if err := a.apply(u.Routes()); err != nil {
					return errors.Join(err, conn.Close())
				}
			}
		}
	})
}

// inKernel counts the routes of one protocol in a node's IPv4 tables.
func inKernel(x *node, proto byte) (n int, err error) {
	err = x.Do(func() error {
		conn, err := nlwire.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		msgs, err := conn.Query("routes", rtnl.DumpAllRoutes(false))
		for _, m := range msgs {
			if r, ok := rtnl.ParseRoute(m); ok && r.Protocol == proto {
				n++
			}
		}
		return errors.Join(err, conn.Close())
	})
	return n, err
}

// source is a BIRD that can say count routes at once, and take them back, without its session's knowing.
func source(t testing.TB, at *node, to *node, count int) *bird {
	t.Helper()
	f := far{at: at, asn: 64513, sessions: []farSession{{us: to.v4, local: at.v4, asn: 64512, families: []berth.Family{berth.IPv4}, hold: 90}}}
	for i := range count {
		f.routes = append(f.routes, farRoute{prefix: fmt.Sprintf("10.%d.%d.%d/28", 244+i>>12, i>>4&255, i<<4&255)})
	}
	b := &bird{}
	b.start(t, f)
	return b
}

// toKernel is how long it takes from the word until to's kernel has n routes.
func toKernel(t testing.TB, from *bird, to *node, proto byte, line string, n int) time.Duration {
	t.Helper()
	began := time.Now()
	if out, err := from.ask(line); err != nil {
		t.Fatal(out, err)
	}
	for {
		got, err := inKernel(to, proto)
		took := time.Since(began)
		if err != nil {
			t.Fatal(err)
		}
		if got == n {
			return took
		}
		if took > time.Minute {
			t.Fatalf("%d of %d routes after %v", got, n, took)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// benchPair is a source and a receiver.
type benchPair struct {
	from *bird
	to   *node
	put  byte
}

// benchLab is BIRD → berth-bgp → kernel beside BIRD → BIRD → kernel, both with their sessions up and nothing said.
func benchLab(t *testing.T, count int) (ours, peers benchPair) {
	t.Helper()
	l := newLab(t, 4)
	ours = benchPair{source(t, l[1], l[0], count), l[0], protoOurs}
	peers = benchPair{source(t, l[3], l[2], count), l[2], protoBIRD}
	(&bird{}).start(t, far{at: l[2], asn: 64512, kernel: true, sessions: []farSession{{us: l[3].v4, local: l[2].v4, asn: 64513, families: []berth.Family{berth.IPv4}, hold: 90}}})
	c := ourConfig(l[0], berth.Peer{Address: l[1].v4, ASN: 64513, ConnectRetry: time.Second})
	c.Pools = []netip.Prefix{pfx("10.244.0.0/14")}
	u := startUs(t, l[0], c, nil)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- runApplier(u, stop) }()
	t.Cleanup(func() {
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, p := range []benchPair{ours, peers} {
		toKernel(t, p.from, p.to, p.put, "show status", count)
		toKernel(t, p.from, p.to, p.put, "disable sipv4", 0)
	}
	return ours, peers
}

// TestKernelFollows is the shortest form of the benchmark: what BIRD says is in the kernel, and what it takes back is
// not.
func TestKernelFollows(t *testing.T) {
	t.Parallel()
	const n = 300
	ours, _ := benchLab(t, n)
	toKernel(t, ours.from, ours.to, ours.put, "enable sipv4", n)
	toKernel(t, ours.from, ours.to, ours.put, "disable sipv4", 0)
}

// TestBenchRoutes writes the row bgp_10000_routes_seconds: from the word to BIRD until the kernel has 10,000 routes,
// the median of rounds that take turns.
func TestBenchRoutes(t *testing.T) {
	out := os.Getenv("BERTH_BENCH_OUT")
	if out == "" {
		t.Skip("BERTH_BENCH_OUT does not say where the rows go")
	}
	const n, rounds = 10_000, 7
	ours, peers := benchLab(t, n)
	var mine, theirs []float64
	for range rounds {
		for _, p := range []benchPair{ours, peers} {
			took := toKernel(t, p.from, p.to, p.put, "enable sipv4", n).Seconds()
			if p.put == protoOurs {
				mine = append(mine, took)
			} else {
				theirs = append(theirs, took)
			}
			toKernel(t, p.from, p.to, p.put, "disable sipv4", 0)
		}
	}
	for _, line := range strings.Split(read(t, fmt.Sprintf("/proc/%d/smaps_rollup", child(t, ours.to))), "\n") {
		if strings.HasPrefix(line, "Pss:") {
			t.Logf("berth-bgp after %d routes: %s", n, strings.Join(strings.Fields(line), " "))
		}
	}
	a, b := median(mine), median(theirs)
	t.Logf("berth-bgp %.3f s of %.3v, BIRD %.3f s of %.3v, ratio %.2f", a, mine, b, theirs, a/b)
	rows := []map[string]any{{"name": "bgp_10000_routes_seconds", "unit": "s", "berth": digits(a), "peer": digits(b), "ratio": digits(a / b)}}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err == nil {
		err = os.WriteFile(out, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// digits keeps four.
func digits(v float64) float64 {
	scale := math.Pow(10, 3-math.Floor(math.Log10(v)))
	return math.Round(v*scale) / scale
}
