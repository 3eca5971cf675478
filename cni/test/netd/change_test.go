package netd

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/test/netlab"
)

// converge is how long routes may take after any change.
const converge = 2 * time.Second

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	t.Logf("%-45s %s", what, netlab.Until(t, converge, what, ok).Round(10*time.Millisecond))
}

// reachesNow is a ping that waits 200 ms.
func reachesNow(from *netlab.NS, to string, size int) bool {
	head := 28
	if v6(to) {
		head = 48
	}
	_, err := from.Try(fmt.Sprintf("ping -n -c 1 -W 0.2 -M do -s %d %s", size-head, to))
	return err == nil
}

// TestChanges is a cluster's life, in each mode.
func TestChanges(t *testing.T) {
	for _, pool := range []string{"mode: vxlan", "mode: vxlan, direct: true", "mode: host-gw", "mode: udp"} {
		t.Run(strings.NewReplacer(" ", "", ":", "", ",", "-").Replace(pool), func(t *testing.T) {
			t.Parallel()
			far := !strings.Contains(pool, "host-gw")
			l := newLab(t, pool, true, true, 3, far)
			n1, n2, n3 := l.nodes[0], l.nodes[1], l.nodes[2]
			p1, p2, p3 := n1.pod(""), n2.pod(""), n3.pod("")
			echo(t, p2.NS, 7000)
			both := func(p *pod, size int) func() bool {
				return func() bool { return reachesNow(p1.NS, p.v4, size) && reachesNow(p1.NS, p.v6, size) }
			}
			steady := newFlow(t, p1.NS, p2.v4, 7000)
			within(t, "at the beginning", both(p3, p1.mtu))

			// A node leaves, and nothing leads there any more.
			l.hidden["n3"] = true
			l.write()
			within(t, "a node left", func() bool { return !strings.Contains(n1.ours(), "10.244.3.0") })
			mustNotReach(t, "a pod", p1.NS, p3.v4, 100)
			l.hidden = map[string]bool{}
			l.write()
			within(t, "it is back", both(p3, 100))

			// A node gets another address.
			renumber(t, n3, far)
			l.write()
			within(t, "it was renumbered", both(p3, 100))

			// A link goes and comes, its carrier and then itself.
			n3.port.Cut(true)
			time.Sleep(300 * time.Millisecond)
			n3.port.Cut(false)
			within(t, "its carrier was away", both(p3, 100))
			n3.Run("ip link set eth0 down", "ip link set eth0 up")
			n3.relink(far) // IPv6 addresses and the default routes go with the link
			within(t, "its link was down", both(p3, 100))

			// The network's MTU shrinks: what is too large is said to be, and new pods get the smaller one.
			for _, n := range l.nodes {
				n.port.MTU(1400)
			}
			small := p1.mtu - 100
			within(t, "the MTU shrank", func() bool {
				return n1.conf(fmt.Sprintf(`"mtu": %d`, small)) && n3.conf(fmt.Sprintf(`"mtu": %d`, small))
			})
			within(t, "packets of the smaller size pass", both(p3, small))
			if got := n1.pod("").mtu; got != small {
				t.Errorf("a new pod has MTU %d, want %d", got, small)
			}
			if worst := steady.end(t); worst > netlab.Within(time.Second) {
				t.Errorf("the flow between nodes that did not change stood still for %s", worst)
			}
		})
	}
}

// ours is what of the kernel is the agent's.
func (n *node) ours() string {
	out, err := n.Try("ip route show proto 184")
	if err != nil {
		return err.Error()
	}
	more, err := n.Try("ip -6 route show proto 184")
	if err != nil {
		return err.Error()
	}
	return out + more
}

func (n *node) conf(want string) bool {
	b, err := os.ReadFile(n.conflist())
	return err == nil && strings.Contains(string(b), want)
}

func renumber(t *testing.T, n *node, far bool) {
	t.Helper()
	net4, net6 := "192.0.2.", "2001:db8:a::"
	if far {
		net4, net6 = "198.51.100.", "2001:db8:b::"
	}
	n.Run("ip addr del "+n.v4+"/24 dev eth0", "ip -6 addr del "+n.v6+"/64 dev eth0")
	n.v4, n.v6 = net4+"33", net6+"33"
	n.relink(far)
}

// relink gives the link what it has lost.
func (n *node) relink(far bool) {
	via4, via6 := "192.0.2.254", "2001:db8:a::fe"
	if far {
		via4, via6 = "198.51.100.254", "2001:db8:b::fe"
	}
	n.Run("ip addr replace "+n.v4+"/24 dev eth0", "ip addr replace "+n.v6+"/64 dev eth0 nodad",
		"ip route replace default via "+via4, "ip -6 route replace default via "+via6)
}

// TestRepairsWithinASecond: others break what is ours while the agent runs.
func TestRepairsWithinASecond(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, true, 2, false)
	n1 := l.nodes[0]
	p1, p2 := n1.pod(""), l.nodes[1].pod("")
	within(t, "at the beginning", func() bool { return reachesNow(p1.NS, p2.v4, 100) && reachesNow(p1.NS, p2.v6, 100) })
	list := func() string {
		all := n1.ours()
		for _, line := range []string{"ip -d -o link show type vxlan", "ip neigh show nud permanent", "bridge fdb show dev berth.vx4", "nft list ruleset"} {
			out, err := n1.Try(line)
			all += out
			if err != nil {
				all += err.Error()
			}
		}
		return all
	}
	for _, line := range []string{
		"ip route del 10.244.2.0/24 metric 184", "ip -6 route del fd00:10:0:2::/64", "ip route flush proto 184",
		"ip neigh del 10.244.2.0 dev berth.vx4", "ip link set berth.vx4 down", "ip link del berth.vx4",
		"nft delete table inet berth-netd", "nft flush chain inet berth-netd tunnel", "ip link set berth.vx6 mtu 1300",
		"ip link set berth.vx4 address 02:00:00:00:00:55",
	} {
		good := strip(list())
		n1.Run(line)
		took := netlab.Until(t, time.Second, line, func() bool { return strip(list()) == good })
		t.Logf("%-50s %s", line, took.Round(time.Millisecond))
	}
	within(t, "in the end", func() bool { return reachesNow(p1.NS, p2.v4, 100) && reachesNow(p1.NS, p2.v6, 100) })
	s, err := n1.status()
	if err != nil || !s.Ready || len(s.Changes) < 8 {
		t.Errorf("%+v, %v", s, err)
	}
}

// strip leaves out what a device that was made anew cannot have again, and the order.
func strip(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if at := strings.Index(l, ": berth.vx"); at > 0 && at < 5 {
			lines[i] = l[at:]
		}
		if strings.Contains(l, "counter packets") {
			lines[i] = "counter"
		}
	}
	return strings.Join(sorted(lines), "\n")
}

// TestBadFabric: what is wrong is named and refused, and the last good state keeps running.
func TestBadFabric(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, false, 2, false)
	n1 := l.nodes[0]
	p1, p2 := n1.pod(""), l.nodes[1].pod("")
	before := n1.ours()
	for _, c := range []struct{ text, want string }{
		{"pools: [{name: p, cidr: [10.0.0.0/8]}]", `nearest is \"cidrs\"`},
		{"\x00\xff", "no YAML"},
		{"pools: []\nnodes: []\n", "this node is not in the fabric"},
		{"", "this node is not in the fabric"},
	} {
		l.writeText(c.text)
		within(t, "refused: "+c.want, func() bool {
			out, err := n1.ask("/status", map[string][]string{"format": {"json"}})
			return err == nil && strings.Contains(out, c.want)
		})
		if got := n1.ours(); got != before {
			t.Errorf("%q changed the routes:\n%s\nwere\n%s", c.text, got, before)
		}
	}
	mustReach(t, "a pod", p1.NS, p2.v4, p1.mtu)
	// Without its source, and after a reboot, the agent starts from its snapshot.
	l.writeText("nonsense")
	n1.agent.Kill()
	n1.Run("ip link del berth.vx4", "ip route flush proto 184", "nft delete table inet berth-netd")
	n1.start()
	within(t, "started from the snapshot", func() bool { return n1.ours() == before })
	mustReach(t, "a pod", p1.NS, p2.v4, p1.mtu)
}

// TestForeignVTEP: a machine that is no node wraps a packet as a node would, and it is dropped.
func TestForeignVTEP(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, false, 2, false)
	n1, p2 := l.nodes[0], l.nodes[1].pod("")
	p1 := n1.pod("")
	within(t, "at the beginning", func() bool { return reachesNow(p1.NS, p2.v4, 100) })
	s, err := n1.status()
	if err != nil || len(s.Peers) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	link := n1.Run("ip -o link show berth.vx4")
	_, after, _ := strings.Cut(link, "link/ether ")
	if after == "" {
		t.Fatalf("no MAC in %q", link)
	}
	evil := l.outside
	evil.Run("ip link add vx type vxlan id 1 dstport 8472 local "+outside4+" nolearning", "ip addr add 10.244.9.9/32 dev vx", "ip link set vx up",
		"ip route add 10.244.1.0/24 dev vx onlink via 10.244.1.0", "ip neigh add 10.244.1.0 lladdr "+strings.Fields(after)[0]+" dev vx nud permanent",
		"bridge fdb add "+strings.Fields(after)[0]+" dst "+n1.v4+" dev vx")
	_, _ = evil.Try("ping -n -c 3 -i 0.1 -W 0.2 -I 10.244.9.9 " + p1.v4)
	if out := n1.Run("nft list table inet berth-netd"); !strings.Contains(out, "counter packets 3") {
		t.Errorf("the packets were not dropped by the table:\n%s", out)
	}
	mustReach(t, "a pod", p1.NS, p2.v4, p1.mtu)
}

// TestWrappedIsUntracked: a node that masquerades all that it sends, as some firewalls do, leaves wrapped packets alone.
func TestWrappedIsUntracked(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mode: vxlan", true, true, 2, false)
	n1, p2 := l.nodes[0], l.nodes[1].pod("")
	p1 := n1.pod("")
	n1.Run("nft add table inet fw", "nft add chain inet fw post { type nat hook postrouting priority 100 ; }",
		"nft add rule inet fw post udp dport 8472 counter masquerade fully-random")
	within(t, "IPv4 and IPv6", func() bool { return reachesNow(p1.NS, p2.v4, 100) && reachesNow(p1.NS, p2.v6, 100) })
	if out := n1.Run("nft list table inet fw"); !strings.Contains(out, "counter packets 0") {
		t.Errorf("wrapped packets were masqueraded:\n%s", out)
	}
}
