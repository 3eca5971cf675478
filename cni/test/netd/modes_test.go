package netd

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/test/netlab"
)

// TestModes is the table of what must work: each mode in each family, on one network and across a router.
func TestModes(t *testing.T) {
	for _, c := range []struct {
		name, pool string
		v4, v6     bool
		far        bool
		mtu        int
	}{
		{"vxlan-v4", "mode: vxlan", true, false, true, 1450},
		{"vxlan-v6", "mode: vxlan", false, true, true, 1430},
		{"vxlan-dual", "mode: vxlan", true, true, true, 1430},
		{"direct-dual", "mode: vxlan, direct: true", true, true, true, 1430},
		{"host-gw-v4", "mode: host-gw", true, false, false, 1500},
		{"host-gw-dual", "mode: host-gw", true, true, false, 1500},
		{"bgp-v4", "mode: bgp", true, false, false, 1500},
		{"bgp-v6", "mode: bgp", false, true, false, 1500},
		{"bgp-dual", "mode: bgp", true, true, false, 1500},
		{"udp-v4", "mode: udp", true, false, true, 1472},
		{"udp-v6", "mode: udp", false, true, true, 1452},
		{"udp-dual", "mode: udp", true, true, true, 1452},
		{"mtu", "mode: vxlan, mtu: 1300", true, true, true, 1300},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, c.pool, c.v4, c.v6, 3, c.far)
			everything(t, l, c.mtu)
		})
	}
}

// everything is what every mode must give.
func everything(t *testing.T, l *lab, mtu int) {
	t.Helper()
	var pods []*pod
	for _, n := range l.nodes {
		n.joined()
		pods = append(pods, n.pod(""))
	}
	for _, p := range pods {
		if p.mtu != mtu {
			t.Errorf("pods of %s have MTU %d, want %d", p.node.name, p.mtu, mtu)
		}
	}
	for _, from := range pods {
		what := "pod of " + from.node.name
		for _, to := range pods {
			for _, a := range to.addrs() {
				mustReach(t, what, from.NS, a, mtu) // DF set, as large as may be
			}
		}
		for _, n := range l.nodes {
			for _, a := range n.addrs() {
				mustReach(t, what+" (node)", from.NS, a, 100)
			}
			for _, a := range from.addrs() {
				mustReach(t, "node "+n.name, n.NS, a, 100)
			}
		}
	}
	sources(t, l, pods)
	hostPort(t, l, pods[0])
}

// sources looks at which address others see: the pod's own in all pools, the node's outside of them.
func sources(t *testing.T, l *lab, pods []*pod) {
	t.Helper()
	echo(t, l.outside, 7000)
	echo(t, pods[2].NS, 7000)
	sees := func(what string, from *pod, to, want string) {
		t.Helper()
		c, got, err := dial(from.NS, to, 7000)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		_ = c.Close()
		if got != want {
			t.Errorf("%s: the other side sees %s, want %s", what, got, want)
		}
	}
	if l.v4 {
		sees("pod → outside", pods[0], outside4, pods[0].node.v4)
		sees("pod → pod", pods[0], pods[2].v4, pods[0].v4)
	}
	if l.v6 {
		sees("pod → outside", pods[0], outside6, pods[0].node.v6)
		sees("pod → pod", pods[0], pods[2].v6, pods[0].v6)
	}
}

// hostPort: a port of the first node leads to a pod on it, for the outside and for a pod elsewhere.
func hostPort(t *testing.T, l *lab, far *pod) {
	t.Helper()
	n := l.nodes[1]
	p := n.pod(`[{"hostPort":8088,"containerPort":7001,"protocol":"tcp"}]`)
	echo(t, p.NS, 7001)
	for _, a := range n.addrs() {
		for what, from := range map[string]*pod{"outside": {NS: l.outside}, "a pod elsewhere": far} {
			c, _, err := dial(from.NS, a, 8088)
			if err != nil {
				t.Errorf("%s → host port of %s: %v", what, a, err)
				continue
			}
			_ = c.Close()
		}
	}
}

// TestTraceAndStatus asks a running agent.
func TestTraceAndStatus(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan, direct: true", true, false, 3, true)
	n1 := l.nodes[0]
	p1, p2, p3 := n1.pod(""), l.nodes[1].pod(""), l.nodes[2].pod("")
	for _, c := range []struct {
		to   string
		want []string
	}{
		{p3.v4, []string{"pod of n3", "10.244.3.0/24 via 10.244.3.0 dev berth.vx4", "VTEP 198.51.100.3", "via 192.0.2.254 dev eth0"}},
		{p2.v4, []string{"10.244.2.0/24 via 192.0.2.2 dev eth0 proto 184", "node n2"}},
		{outside4, []string{"outside", "0.0.0.0/0 via 192.0.2.254", "the source becomes this node's address"}},
		{"10.244.1.77", []string{"unreachable"}},
	} {
		out, err := n1.try("trace", p1.v4, c.to)
		if err != nil {
			t.Errorf("trace to %s: %v", c.to, err)
		}
		contains(t, out, c.want...)
	}
	if out, err := n1.try("trace", p2.v4, p3.v4); err == nil {
		t.Errorf("a trace of what does not pass here: %s", out)
	}
	out, err := n1.try("status")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, out, "node n1: ready, 2 peers, pods' MTU 1450", "direct via 192.0.2.2 dev eth0", "vxlan to 198.51.100.3")
	out, err = n1.try("metrics")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, out, "berth_netd_ready 1", "berth_netd_peers 2", "# TYPE berth_netd_applies_total counter")
	second := n1.Start(nil, l.bin+"/berth-netd", "--config", n1.file("netd.yaml"), "serve")
	if !second.Ended(ten) {
		t.Fatal("a second agent runs")
	}
	contains(t, second.Output(), "another berth-netd serves this node", fmt.Sprint(n1.agent.PID()))
}

// joined waits until the node has a route to each block of each other node: by BGP it takes a moment.
func (n *node) joined() {
	n.lab.t.Helper()
	want := len(n.addrs()) * len(n.lab.nodes)
	netlab.Until(n.lab.t, 20*time.Second, "routes of "+n.name, func() bool { return strings.Count(n.ours(), "\n") >= want })
}
