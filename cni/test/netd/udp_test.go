package netd

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestUDPSurvivesItsAgent: the device stays when the agent that wraps its packets is killed; a connection waits for the
// next one. Somebody deletes the device, and it is made again; a packet of an address that is not its sender's is dropped.
func TestUDPSurvivesItsAgent(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: udp", true, true, 2, false)
	n1 := l.nodes[0]
	p1, p2 := n1.pod(""), l.nodes[1].pod("")
	echo(t, p2.NS, 7000)
	mustReach(t, "a pod", p1.NS, p2.v6, p1.mtu)
	flows := []*flow{newFlow(t, p1.NS, p2.v4, 7000), newFlow(t, p1.NS, p2.v6, 7000)}
	for range 5 {
		n1.agent.Kill()
		contains(t, n1.ours(), "10.244.2.0/24 dev berth.udp")
		n1.start()
		within(t, "killed", func() bool { return reachesNow(p1.NS, p2.v4, 100) && reachesNow(p1.NS, p2.v6, 100) })
	}
	for _, f := range flows {
		t.Logf("longest pause %s", f.end(t).Round(time.Millisecond))
	}
	n1.Run("ip link del berth.udp")
	within(t, "its device was deleted", func() bool { return reachesNow(p1.NS, p2.v4, 100) })

	// Node 2 sends as a pod of its own would, from a block that is not its own.
	n2 := l.nodes[1]
	before := n1.dropped()
	n2.Run("ip addr add 10.244.77.1/32 dev lo")
	if out, err := n2.Try("ping -n -c 3 -i 0.1 -W 0.2 -I 10.244.77.1 " + p1.v4); err == nil {
		t.Errorf("answered: %s", out)
	}
	if got := n1.dropped(); got < before+3 {
		t.Errorf("%d packets were dropped, and %d before", got, before)
	}

	// Another mode takes the device away.
	l.pool = "mode: vxlan"
	l.write()
	within(t, "another mode", func() bool {
		_, err := n1.Try("ip link show berth.udp")
		return err != nil && reachesNow(p1.NS, p2.v4, 100)
	})
}

// dropped is what the agent's own tunnel has dropped; the kernel's own chatter counts too.
func (n *node) dropped() int {
	n.lab.t.Helper()
	out, err := n.try("metrics")
	if err != nil {
		n.lab.t.Fatal(err)
	}
	_, after, _ := strings.Cut(out, "\nberth_netd_udp_dropped_total ")
	value, _, _ := strings.Cut(after, "\n")
	count, err := strconv.Atoi(value)
	if err != nil {
		n.lab.t.Fatal(err)
	}
	return count
}
