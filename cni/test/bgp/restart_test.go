package bgp

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// restartCells are about what stays while someone is away.
func restartCells() []cell {
	return []cell{
		{name: "first start is not silent", run: firstStart},
		{name: "graceful restart: they restart", run: theyRestart},
		{name: "graceful restart: our child dies", run: childDies},
		{name: "graceful restart: agent upgrade", run: agentRestarts, slow: true},
		{name: "graceful restart: nobody returns", run: nobodyReturns, slow: true},
		{name: "graceful restart: a late peer", run: latePeer, slow: true},
		{name: "long-lived restart: they are away", run: longLivedTheirs, slow: true},
		{name: "long-lived restart: we are away", run: longLivedOurs, slow: true},
		{name: "our leaving is told (Cease)", run: weLeave},
		{
			name: "hard reset (RFC 8538)", run: hardReset, slow: true,
			cannot: map[string]string{"BIRD": "2.0.12 does not know RFC 8538"},
		},
	}
}

// graceful is a pair whose ends both do graceful restart.
func graceful(t *testing.T, d speakerDaemon, seconds int) *pair {
	t.Helper()
	p := newPair(t, d, 64513, false)
	p.far.gr = seconds
	p.config.Restart.Time = time.Duration(seconds) * time.Second
	p.config.Restart.Deferral = 3 * time.Second
	return p
}

// watchFar counts how often the far speaker is asked for a prefix and does not have it, until the returned func.
func watchFar(d speakerDaemon, prefix string) (missing func() (int64, int64)) {
	var asked, lacked atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if _, ok, err := d.route(prefix); err == nil {
				asked.Add(1)
				if !ok {
					lacked.Add(1)
				}
			}
		}
	}()
	return func() (int64, int64) {
		close(stop)
		<-done
		return lacked.Load(), asked.Load()
	}
}

// watchUs likewise for our own table.
func watchUs(u *us, prefix string) (missing func() (int64, int64)) {
	var asked, lacked int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			asked++
			if _, ok := u.route(prefix); !ok {
				lacked++
			}
		}
	}()
	return func() (int64, int64) {
		close(stop)
		<-done
		return lacked, asked
	}
}

func noneMissing(t *testing.T, who string, missing func() (int64, int64)) {
	t.Helper()
	lacked, asked := missing()
	if lacked > 0 || asked == 0 {
		t.Errorf("%s lacked the route %d of %d times", who, lacked, asked)
	}
}

// child is the process id of berth-bgp in a node.
func child(t *testing.T, x *node) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(x.Path(), &st); err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		comm, err := os.ReadFile(d + "/comm")
		var o unix.Stat_t
		if err != nil || strings.TrimSpace(string(comm)) != "berth-bgp" || unix.Stat(d+"/ns/net", &o) != nil || o.Ino != st.Ino {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatal("no berth-bgp runs")
	return 0
}

func firstStart(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 120)
	p.config.Restart.Deferral = 30 * time.Second
	u := p.start(t)
	eventually(t, 15*time.Second, u.established(p.at.v4))
	eventually(t, 3*time.Second, hasFar(d, "10.244.1.0/24", nil))
	eventually(t, 3*time.Second, u.has("10.244.2.0/24", p.at.v4))
}

func theyRestart(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 30)
	u := p.start(t)
	p.exchanged(t, u)
	missing := watchUs(u, "10.244.2.0/24")
	d.crash()
	eventually(t, 5*time.Second, func() error {
		if u.established(p.at.v4)() == nil {
			return fmt.Errorf("the session survives a crash")
		}
		return nil
	})
	time.Sleep(500 * time.Millisecond)
	d.resume(t)
	p.exchanged(t, u)
	noneMissing(t, "we", missing)
}

func childDies(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 30)
	u := p.start(t)
	p.exchanged(t, u)
	ours, theirs := watchUs(u, "10.244.2.0/24"), watchFar(d, "10.244.1.0/24")
	for i := range 3 {
		if err := unix.Kill(child(t, p.us), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() error { return want("restarts", u.Status().Restarts, i+1) })
		p.exchanged(t, u)
		time.Sleep(300 * time.Millisecond)
	}
	noneMissing(t, "we", ours)
	noneMissing(t, d.name(), theirs)
}

func agentRestarts(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 30)
	u := p.start(t)
	p.exchanged(t, u)
	theirs := watchFar(d, "10.244.1.0/24")
	kept := u.Routes()
	u.stop()
	time.Sleep(500 * time.Millisecond)
	next := startUs(t, p.us, p.config, kept)
	ours := watchUs(next, "10.244.2.0/24")
	p.exchanged(t, next)
	time.Sleep(time.Second)
	noneMissing(t, "we", ours)
	noneMissing(t, d.name(), theirs)
}

// latePeer comes up after our restart time is over, while another never does: to it we have not just restarted, and it
// need not wait for the other's End-of-RIB.
func latePeer(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 3)
	p.config.Restart.Deferral = 30 * time.Second
	p.config.Peers = append(p.config.Peers, berth.Peer{Address: ip("10.0.0.77"), ASN: 64777})
	u := startUs(t, p.us, p.config, []berth.Route{})
	time.Sleep(5 * time.Second)
	d.start(t, p.far)
	eventually(t, 15*time.Second, u.established(p.at.v4))
	eventually(t, 3*time.Second, hasFar(d, "10.244.1.0/24", nil))
	eventually(t, 3*time.Second, u.has("10.244.2.0/24", p.at.v4))
}

func nobodyReturns(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 4)
	u := p.start(t)
	p.exchanged(t, u)
	d.crash()
	never(t, 2*time.Second, "the routes go at once", func() bool { return u.lacks("10.244.2.0/24")() == nil })
	eventually(t, 8*time.Second, u.lacks("10.244.2.0/24"))
}

func longLivedTheirs(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 2)
	p.far.llgr, p.config.Restart.LongLived = 8, 8*time.Second
	u := p.start(t)
	p.exchanged(t, u)
	d.crash()
	never(t, 5*time.Second, "the routes go with the restart time", func() bool { return u.lacks("10.244.2.0/24")() == nil })
	eventually(t, 10*time.Second, u.lacks("10.244.2.0/24"))
}

func longLivedOurs(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 2)
	p.far.llgr, p.config.Restart.LongLived = 30, 30*time.Second
	u := p.start(t)
	p.exchanged(t, u)
	u.stop()
	eventually(t, 10*time.Second, hasFar(d, "10.244.1.0/24", func(l learned) error {
		return want("LLGR_STALE", strings.Contains(l.community+stale(l), "stale"), true)
	}))
}

// stale says it in one word for both daemons: BIRD shows the community, FRR its name.
func stale(l learned) string {
	if l.stale || strings.Contains(l.community, "65535:6") || strings.Contains(l.community, "llgr-stale") {
		return "stale"
	}
	return ""
}

func weLeave(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 60)
	u := p.start(t)
	p.exchanged(t, u)
	c := p.config
	c.Peers = nil
	if err := u.Set(c); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, lacksFar(d, "10.244.1.0/24"))
	eventually(t, 5*time.Second, u.lacks("10.244.2.0/24"))
}

func hardReset(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 60)
	u := p.start(t)
	p.exchanged(t, u)
	if out, err := d.ask("clear bgp " + p.us.v4.String()); err != nil {
		t.Fatal(err, out)
	}
	eventually(t, 3*time.Second, u.lacks("10.244.2.0/24"))
	p.exchanged(t, u)
}
