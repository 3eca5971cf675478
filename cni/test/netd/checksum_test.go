package netd

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/test/netlab"
)

// TestSpoiltChecksums: behind a network card that does not compute the checksums it is asked for, pings pass between
// pods and nothing else; the agents find out and go without it, until the machine is started again. Where all is well
// they change nothing.
func TestSpoiltChecksums(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, true, 3, false)
	p1, p2, p3 := l.nodes[0].pod(""), l.nodes[1].pod(""), l.nodes[2].pod("")
	echo(t, p2.NS, 7)
	echo(t, p3.NS, 7)
	talks := func(to *pod) bool {
		for _, a := range to.addrs() {
			c, _, err := dial(p1.NS, a, 7)
			if err != nil {
				return false
			}
			_ = c.Close()
		}
		return true
	}
	if !talks(p2) || !talks(p3) {
		t.Fatal("the pods do not talk at first")
	}
	offloaded := func(n *node) bool {
		out, err := n.Try("ethtool -k berth.vx4")
		return err == nil && strings.Contains(out, "tx-checksum-ip-generic: on")
	}
	again := func(settings string, nodes ...*node) {
		for _, n := range nodes {
			n.agent.Kill()
			n.settings = settings
			n.start()
		}
		for _, n := range nodes {
			within(t, n.name+" serves", func() bool { s, err := n.status(); return err == nil && s.Ready })
		}
	}
	n1 := l.nodes[0]
	again("checksums: device\n", n1)
	n1.port.Spoil()
	within(t, "a ping", func() bool { return reachesNow(p1.NS, p2.v4, 100) && reachesNow(p1.NS, p2.v6, 100) })
	if talks(p2) {
		t.Fatal("the wire spoils nothing")
	}
	again("", l.nodes...)
	took := netlab.Until(t, 15*time.Second, "TCP", func() bool { return talks(p2) && talks(p3) })
	t.Logf("found and worked around in %s", took.Round(time.Millisecond))
	s, err := n1.status()
	if err != nil || len(s.Checksums) != 2 || offloaded(n1) || !strings.Contains(s.String(), "SOFTWARE CHECKSUMS on berth.vx4") {
		t.Errorf("%+v, %v, offloaded %v", s.Checksums, err, offloaded(n1))
	}
	// It is kept over a restart, and a device that is made anew gets it as well.
	again("", n1)
	n1.Run("ip link del berth.vx4")
	within(t, "after the device was made anew", func() bool { return !offloaded(n1) && talks(p2) })
}

// TestSoundChecksums: where all is well nothing is changed.
func TestSoundChecksums(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, true, 2, false)
	for _, n := range l.nodes {
		within(t, n.name+" asked", func() bool {
			out, err := n.ask("/metrics", nil)
			return err == nil && strings.Contains(out, "berth_netd_checksum_peers_sound 2\n")
		})
		if s, err := n.status(); err != nil || len(s.Checksums) != 0 {
			t.Errorf("%s: %+v, %v", n.name, s.Checksums, err)
		}
		if out := n.Run("ethtool -k berth.vx4"); !strings.Contains(out, "tx-checksum-ip-generic: on") {
			t.Errorf("%s:\n%s", n.name, out)
		}
	}
}
