package netd

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/test/netlab"
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
	if a, b := f4.end(t), f6.end(t); max(a, b) > netlab.Within(500*time.Millisecond) {
		t.Errorf("connections stood still for %s and %s", a, b)
	}
	// The mesh becomes a star: node 1 reflects, and nobody's connection notices.
	f4 = newFlow(t, p1.NS, p2.v4, 7000)
	n1.extra, l.more = ", labels: {reflects: 'yes'}", "bgp: {topology: reflectors, reflectors: {reflects: 'yes'}}\n"
	l.write()
	within(t, "two sessions of each node that does not reflect", func() bool { return n2.sessions() == 2 && n1.sessions() == 4 })
	netlab.Until(t, 10*time.Second, "routes by the reflector", func() bool { return n1.ours() == before && strings.Contains(n2.ours(), "10.244.3.0/24") })
	if worst := f4.end(t); worst > netlab.Within(500*time.Millisecond) {
		t.Errorf("a connection stood still for %s", worst)
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

// sessions counts the node's peers.
func (n *node) sessions() int {
	s, err := n.status()
	if err != nil {
		return -1
	}
	bgp, ok := s.BGP.(map[string]any)
	if !ok {
		return -1
	}
	peers, _ := bgp["peers"].([]any) //nolint:errcheck // none is none
	return len(peers)
}
