package netd

import (
	"strings"
	"testing"
	"time"
)

// TestBGPSurvivesItsAgents: agents are killed, with their speakers, and started again while a connection is open; routes
// that were learned stay until the peers have said theirs again.
func TestBGPSurvivesItsAgents(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: bgp", true, true, 3, false)
	n1, n2 := l.nodes[0], l.nodes[1]
	for _, n := range l.nodes {
		n.joined()
	}
	p1, p2 := n1.pod(""), n2.pod("")
	echo(t, p2.NS, 7000)
	mustReach(t, "a pod", p1.NS, p2.v6, 100)
	f4, f6 := newFlow(t, p1.NS, p2.v4, 7000), newFlow(t, p1.NS, p2.v6, 7000)
	before := n1.ours()
	for _, n := range []*node{n1, n2, n1} {
		n.agent.Kill()
		time.Sleep(200 * time.Millisecond)
		n.start()
		time.Sleep(time.Second)
		if got := n1.ours(); got != before {
			t.Errorf("after a restart of %s:\n%s\nwere\n%s", n.name, got, before)
		}
	}
	if a, b := f4.end(t), f6.end(t); max(a, b) > 500*time.Millisecond {
		t.Errorf("connections stood still for %s and %s", a, b)
	}
	// A node that leaves the fabric takes its session, and with it its routes, along.
	l.hidden["n3"] = true
	l.write()
	within(t, "a node left", func() bool { return !strings.Contains(n1.ours(), "10.244.3.0") })
	s, err := n1.status()
	if err != nil || s.BGP == nil {
		t.Errorf("no BGP in %+v, %v", s, err)
	}
}
