package test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBandwidth sends through both limits of a pod, and looks at CHECK and at what is left.
func TestBandwidth(t *testing.T) {
	n := newNode(t)
	limits := `,"runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":400000,"egressRate":8000000,"egressBurst":400000}}`
	p := n.addPod(t, "slow", dual+limits)
	p.swallow(t, 80)
	if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.Path(), conf: p.conf}); err != nil {
		t.Error(err)
	}
	start := time.Now()
	err := n.Do(func() error { return push(net.JoinHostPort(p.v4, "80"), 1<<20) })
	if took := time.Since(start); err != nil || took < 600*time.Millisecond {
		t.Errorf("1 MiB at 8 Mbit/s took %v, %v", took, err)
	}
	n.sh(t, "tc qdisc del dev "+p.host+" root")
	if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.Path(), conf: p.conf}); code(err) != 101 || !strings.Contains(err.Error(), "limited") {
		t.Errorf("CHECK without the limit: %v", err)
	}
	// Runtimes send 2³¹-1 when nobody chose a burst: that must not mean a quarter of a gigabyte.
	q := n.addPod(t, "kubelet", dual+strings.ReplaceAll(limits, "400000", "2147483647"))
	if out := n.sh(t, "tc qdisc show dev "+q.host); !strings.Contains(out, "burst 20000b") && !strings.Contains(out, "burst 15000b") {
		t.Errorf("burst: %s", out)
	}
	if _, err := n.run(call{verb: "ADD", id: "bad", netns: newNS(t).Path(), conf: n.conf("1.1.0", `,"runtimeConfig":{"bandwidth":{"ingressRate":8}}`)}); code(err) != 7 || !strings.Contains(err.Error(), "ingressBurst") {
		t.Errorf("a rate without a burst: %v", err)
	}
}

// swallow reads all that clients send and closes.
func (n *ns) swallow(t testing.TB, port int) {
	t.Helper()
	if err := n.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}()
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// push sends n bytes and waits until the server has read them.
func push(addr string, n int) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a test's client
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 16<<10)
	for sent := 0; sent < n; sent += len(b) {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

func TestRuntimeRanges(t *testing.T) {
	n := newNode(t)
	own := `,"ranges":[{"subnet":"10.99.0.0/24"}]`
	a := n.addPod(t, "a", own+`,"runtimeConfig":{"ipRanges":[[{"subnet":"10.98.0.0/30"}]]}`)
	b := n.addPod(t, "b", own)
	if !strings.HasPrefix(a.v4, "10.98.0.") || !strings.HasPrefix(b.v4, "10.99.0.") {
		t.Fatalf("%s, %s", a.v4, b.v4)
	}
	// DEL comes without the runtime's ranges, and the address is free again all the same.
	for range 3 {
		c, err := n.tryAdd(newNS(t), "c", n.conf("1.1.0", own+`,"cooldownSeconds":0,"runtimeConfig":{"ipRanges":[[{"subnet":"10.98.0.0/30"}]]}`), "")
		if err != nil || !strings.HasPrefix(c.v4, "10.98.0.") {
			t.Fatalf("%v, %v", c, err)
		}
		c.conf = n.conf("1.1.0", own)
		c.del(t)
	}
}

// TestImport migrates from upstream's host-local with pods that live on.
func TestImport(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	for _, ip := range []string{"10.99.0.1", "10.99.0.3"} {
		if err := os.WriteFile(filepath.Join(dir, ip), []byte("old\r\neth0"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf := n.conf("1.1.0", fmt.Sprintf(`,"ranges":[{"subnet":"10.99.0.0/29"}],"cooldownSeconds":0,"importHostLocal":[%q]`, dir))
	var pods []*pod
	for i := range 4 {
		p, err := n.tryAdd(newNS(t), fmt.Sprint("p", i), conf, "")
		if err != nil {
			t.Fatal(err)
		}
		if p.v4 == "10.99.0.1" || p.v4 == "10.99.0.3" {
			t.Errorf("%s belongs to a pod that lives", p.v4)
		}
		pods = append(pods, p)
	}
	if _, err := n.tryAdd(newNS(t), "full", conf, ""); code(err) != 11 {
		t.Errorf("full: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "10.99.0.3")); err != nil {
		t.Fatal(err)
	}
	p, err := n.tryAdd(newNS(t), "freed", conf, "")
	if err != nil || p.v4 != "10.99.0.3" {
		t.Errorf("after upstream's DEL: %v, %v", p, err)
	}
	for _, p := range append(pods, p) {
		p.del(t)
	}
}

// TestObstacles finds forward policies that would drop a pod's packets, of all three kinds.
func TestObstacles(t *testing.T) {
	n := newNode(t)
	n.addPod(t, "a", dual)
	for _, c := range []struct{ set, reset, want string }{
		{"nft add table inet ufw", "nft delete table inet ufw", "inet ufw"},
		{"iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT", "table ip filter"},
		{"iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", "iptables-legacy"},
		{"ip6tables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD ACCEPT", "ip6tables-legacy"},
	} {
		n.sh(t, c.set)
		if strings.HasPrefix(c.set, "nft") {
			n.sh(t, "nft add chain inet ufw f { type filter hook forward priority 0 ; policy drop ; }")
		}
		if out := n.sh(t, n.bin+" doctor "+n.state); !strings.Contains(out, "LOOK") || !strings.Contains(out, c.want) {
			t.Errorf("after %s: %s", c.set, out)
		}
		n.sh(t, c.reset)
		if out := n.sh(t, n.bin+" doctor "+n.state); strings.Contains(out, "LOOK") {
			t.Errorf("after %s: %s", c.reset, out)
		}
	}
}

// bridged attaches a pod to a bridge by the drop-in.
func (n *node) bridged(t *testing.T, id, more string) (*pod, error) {
	t.Helper()
	s := newNS(t)
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"br","type":"bridge","bridge":"br7","isDefaultGateway":true,"stateDir":%q,
		"ipam":{"type":"host-local","subnet":"10.66.0.0/24","dataDir":%q}%s}`, n.state, filepath.Join(n.state, "leases-of-br"), more)
	bin := n.as(t, "bridge")
	out, err := n.run(call{verb: "ADD", id: id, netns: s.Path(), conf: conf, bin: bin})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if _, err := n.run(call{verb: "DEL", id: id, netns: s.Path(), conf: conf, bin: bin}); err != nil {
			t.Error(err)
		}
	})
	return &pod{ns: s, id: id, conf: conf, node: n, v4: addressIn(string(out))}, nil
}

// TestBridgeOptions looks at what a bridge's port can do that is not the default.
func TestBridgeOptions(t *testing.T) {
	n := newNode(t)
	a, err := n.bridged(t, "a", `,"macspoofchk":true,"portIsolation":true`)
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.bridged(t, "b", `,"portIsolation":true`)
	if err != nil {
		t.Fatal(err)
	}
	b.serve(t, 80)
	n.serve(t, 90)
	expect(t, "an isolated port to the bridge", a.ns, "tcp", "10.66.0.1", 90, a.v4)
	expect(t, "an isolated port to another", a.ns, "tcp", b.v4, 80, "-")
	a.sh(t, "ip link set eth0 address 02:00:00:00:00:33")
	a.sh(t, "ip neigh flush all")
	expect(t, "a foreign MAC", a.ns, "tcp", "10.66.0.1", 90, "-")
	if _, err := n.bridged(t, "c", `,"vlan":100`); err != nil && (code(err) != 2 || !strings.Contains(err.Error(), "BRIDGE_VLAN_FILTERING")) {
		t.Errorf("VLANs, which this kernel may not have: %v", err)
	}
	n.sh(t, "ip addr add 10.67.0.1/24 dev br7")
	if _, err := n.bridged(t, "d", ""); err != nil {
		t.Errorf("the bridge has its address, and another one: %v", err)
	}
	n.sh(t, "ip addr del 10.66.0.1/24 dev br7")
	if _, err := n.bridged(t, "e", ""); code(err) != 7 || !strings.Contains(err.Error(), "forceAddress") {
		t.Errorf("a bridge with another address: %v", err)
	}
	if _, err := n.bridged(t, "f", `,"forceAddress":true`); err != nil {
		t.Error(err)
	}
	if out := n.sh(t, "ip -o addr show br7"); strings.Contains(out, "10.67.0.1") || !strings.Contains(out, "10.66.0.1") {
		t.Errorf("forceAddress: %s", out)
	}
}

// TestPortmapOptions looks at whose address a server sees behind a host port.
func TestPortmapOptions(t *testing.T) {
	n := newNode(t)
	bin := n.as(t, "portmap")
	for i, c := range []struct{ option, outside, localhost string }{
		{"", outIP4, ""},
		{`,"masqAll":true`, "10.66.0.1", ""},
		{`,"snat":false`, outIP4, "-"},
	} {
		p, err := n.bridged(t, fmt.Sprint("p", i), "")
		if err != nil {
			t.Fatal(err)
		}
		p.serve(t, 80)
		conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"br","type":"portmap","stateDir":%q%s,
			"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":132,"containerPort":132,"protocol":"sctp"}]},
			"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":%q}],"ips":[{"address":"%s/24","interface":0}]}}`,
			n.state, c.option, p.Path(), p.v4)
		run := func(verb string) {
			t.Helper()
			if _, err := n.run(call{verb: verb, id: p.id, netns: p.Path(), conf: conf, bin: bin}); err != nil {
				t.Fatalf("%s%s: %v", verb, c.option, err)
			}
		}
		run("ADD")
		expect(t, "outside"+c.option, n.outside, "tcp", nodeIP4, 8080, c.outside)
		if i != 2 { // what an earlier one opened on the bridge stays open: its neighbours need it
			expect(t, "localhost"+c.option, n.ns, "tcp", "127.0.0.1", 8080, c.localhost)
		}
		if out := n.sh(t, "nft list map inet berth-node port4"); !strings.Contains(out, "sctp . 132 : "+p.v4) {
			t.Errorf("no SCTP port in %s", out)
		}
		run("CHECK")
		run("DEL")
		expect(t, "outside, after DEL"+c.option, n.outside, "tcp", nodeIP4, 8080, "-")
	}
}

// TestIPTablesMissing asks for iptables where it is not installed: nothing is made, and nobody else is held up.
func TestIPTablesMissing(t *testing.T) {
	n := newNode(t)
	bin, s := n.as(t, "bridge"), newNS(t)
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"br","type":"bridge","bridge":"br7","ipMasq":true,"ipMasqBackend":"iptables","stateDir":%q,
		"ipam":{"type":"host-local","subnet":"10.66.0.0/24","dataDir":%q}}`, n.state, filepath.Join(n.state, "leases-of-br"))
	out, err := n.run(call{verb: "ADD", id: "a", netns: s.Path(), conf: conf, bin: bin, env: []string{"PATH=/nonexistent"}})
	if code(err) != 7 || !strings.Contains(err.Error(), "iptables-save") || !strings.Contains(err.Error(), "nftables") {
		t.Fatalf("%s, %v", out, err)
	}
	if left := n.census(t); left != "" {
		t.Errorf("left %s", left)
	}
	n.addPod(t, "b", dual)
}
