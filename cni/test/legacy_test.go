package test

import (
	"strings"
	"testing"
)

// TestIPTables does with rules in iptables what other tests do with them in nftables, and finds none of the table.
func TestIPTables(t *testing.T) {
	backend = `,"backend":"iptables"`
	t.Cleanup(func() { backend = "" })
	for name, test := range map[string]func(*testing.T){
		"Traffic": TestTraffic, "Masquerade": TestMasquerade, "HostPorts": TestHostPorts, "HostIPFirst": TestHostIPFirst, "UDPFlowMoves": TestUDPFlowMoves, "Spoofing": TestSpoofing,
		"RouterAdvertisements": TestRouterAdvertisements, "CheckFinds": TestCheckFinds, "GC": TestGC, "AnotherBoot": TestAnotherBoot, "Parallel": TestParallel,
	} {
		t.Run(name, test)
	}
	t.Run("PoolsGrow", func(t *testing.T) { // what an older pod's rules leave alone grows with them
		n := newNode(t)
		a := n.addPod(t, "a", dual)
		n.outside.serve(t, 8000)
		n.outside.sh(t, "ip route add 10.99.0.0/24 via "+nodeIP4)
		expect(t, "masqueraded", a.ns, "tcp", outIP4, 8000, nodeIP4)
		n.addPod(t, "b", dual+`,"masqueradeExclude":["192.0.2.0/24"]`)
		expect(t, "excluded since", a.ns, "tcp", outIP4, 8000, a.v4)
	})
	t.Run("AddAndDel", func(t *testing.T) {
		n := newNode(t)
		before := n.sh(t, "iptables-save") + n.sh(t, "ip6tables-save")
		p := n.addPod(t, "a", dual+ports)
		during := n.sh(t, "iptables-save") + n.sh(t, "ip6tables-save")
		if strings.Count(during, "BTH-") < 20 || strings.Contains(n.sh(t, "nft list tables"), "berth-node") {
			t.Errorf("rules of a pod:\n%s", during)
		}
		if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.Path(), conf: p.conf}); err != nil {
			t.Error(err)
		}
		for _, flush := range []string{"iptables -t raw -F", "iptables -t nat -F", "ip6tables -t nat -F POSTROUTING"} {
			n.sh(t, flush)
		}
		if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.Path(), conf: p.conf}); code(err) != 101 {
			t.Errorf("CHECK after a flush: %v", err)
		}
		if _, err := n.run(call{verb: "STATUS", conf: n.conf("1.1.0", dual)}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.Path(), conf: p.conf}); err != nil {
			t.Errorf("STATUS did not mend: %v", err)
		}
		p.del(t)
		after := n.sh(t, "iptables-save") + n.sh(t, "ip6tables-save")
		for line := range strings.Lines(after) {
			if strings.Contains(line, "BTH-") && !strings.Contains(line, "BTH-PORTS -") && !strings.Contains(line, "-j BTH-PORTS\n") {
				t.Errorf("left: %s (before: %s)", line, before)
			}
		}
	})
}

// TestOneBackend: a node's pods have their rules in one place; the other comes when they are gone.
func TestOneBackend(t *testing.T) {
	n := newNode(t)
	a := n.addPod(t, "a", dual)
	const legacy = `,"backend":"iptables"`
	if _, err := n.tryAdd(newNS(t), "b", n.conf("1.1.0", dual+legacy), ""); code(err) != 7 || !strings.Contains(err.Error(), "container a") {
		t.Errorf("iptables beside nftables: %v", err)
	}
	a.del(t)
	b := n.addPod(t, "b", dual+legacy)
	if tables := n.sh(t, "nft list tables"); strings.Contains(tables, "berth-node") {
		t.Errorf("the other backend's table stays: %s", tables)
	}
	n.serve(t, 8000)
	expect(t, "pod to node", b.ns, "tcp", nodeIP4, 8000, b.v4)
	if _, err := n.tryAdd(newNS(t), "c", n.conf("1.1.0", dual), ""); code(err) != 7 || !strings.Contains(err.Error(), "container b") {
		t.Errorf("nftables beside iptables: %v", err)
	}
	b.del(t)
	c := n.addPod(t, "c", dual)
	expect(t, "pod to node", c.ns, "tcp", nodeIP4, 8000, c.v4)
	if _, err := n.tryAdd(newNS(t), "d", n.conf("1.1.0", dual+`,"backend":"ipfw"`), ""); code(err) != 7 || !strings.Contains(err.Error(), "ipfw") {
		t.Errorf("an unknown backend: %v", err)
	}
}
