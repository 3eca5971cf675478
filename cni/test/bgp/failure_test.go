package bgp

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	berth "github.com/berth-project/berth/cni/internal/bgp"
)

// failureCells are about peers that stop, and a child that does.
func failureCells() []cell {
	return []cell{
		{name: "hold timer: they fall silent", run: theyFallSilent},
		{name: "hold timer: our child hangs", run: childHangs, slow: true},
		{name: "no graceful restart: they crash", run: theyCrash, slow: true},
	}
}

func (b *bird) pid() int { return b.d.cmd.Process.Pid }
func (r *frr) pid() int  { return r.bgpd.cmd.Process.Pid }

func signal(t *testing.T, pid int, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

func theyFallSilent(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	p.far.sessions[0].hold, p.config.Peers[0].Hold = 3, 3*time.Second
	u := p.start(t)
	p.exchanged(t, u)
	pid := d.(interface{ pid() int }).pid()
	signal(t, pid, unix.SIGSTOP)
	defer signal(t, pid, unix.SIGCONT)
	eventually(t, 6*time.Second, u.lacks("10.244.2.0/24"))
	if s := u.peer(p.at.v4); s.LastError == "" || s.Flaps == 0 {
		t.Errorf("why it ended is not told: %+v", s)
	}
}

func childHangs(t *testing.T, d speakerDaemon) {
	p := graceful(t, d, 40)
	p.far.sessions[0].hold, p.config.Peers[0].Hold = 3, 3*time.Second
	u := p.start(t)
	p.exchanged(t, u)
	missing := watchUs(u, "10.244.2.0/24")
	signal(t, child(t, p.us), unix.SIGSTOP)
	eventually(t, 30*time.Second, func() error {
		if u.Status().Restarts == 0 {
			return fmt.Errorf("a child that hangs is not replaced")
		}
		return nil
	})
	p.exchanged(t, u)
	noneMissing(t, "we", missing)
}

func theyCrash(t *testing.T, d speakerDaemon) {
	p := newPair(t, d, 64513, false)
	u := p.start(t)
	p.exchanged(t, u)
	d.crash()
	eventually(t, 5*time.Second, u.lacks("10.244.2.0/24"))
	d.resume(t)
	p.exchanged(t, u)
	if s := u.peer(p.at.v4); s.State != berth.SessionEstablished || s.Flaps == 0 {
		t.Errorf("%+v", s)
	}
}
