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
	if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.path(), conf: p.conf}); err != nil {
		t.Error(err)
	}
	start := time.Now()
	err := n.do(func() error { return push(net.JoinHostPort(p.v4, "80"), 1<<20) })
	if took := time.Since(start); err != nil || took < 600*time.Millisecond {
		t.Errorf("1 MiB at 8 Mbit/s took %v, %v", took, err)
	}
	n.sh(t, "tc qdisc del dev "+p.host+" root")
	if _, err := n.run(call{verb: "CHECK", id: p.id, netns: p.path(), conf: p.conf}); code(err) != 101 || !strings.Contains(err.Error(), "limited") {
		t.Errorf("CHECK without the limit: %v", err)
	}
	// Runtimes send 2³¹-1 when nobody chose a burst: that must not mean a quarter of a gigabyte.
	q := n.addPod(t, "kubelet", dual+strings.ReplaceAll(limits, "400000", "2147483647"))
	if out := n.sh(t, "tc qdisc show dev "+q.host); !strings.Contains(out, "burst 20000b") && !strings.Contains(out, "burst 15000b") {
		t.Errorf("burst: %s", out)
	}
	if _, err := n.run(call{verb: "ADD", id: "bad", netns: newNS(t).path(), conf: n.conf("1.1.0", `,"runtimeConfig":{"bandwidth":{"ingressRate":8}}`)}); code(err) != 7 || !strings.Contains(err.Error(), "ingressBurst") {
		t.Errorf("a rate without a burst: %v", err)
	}
}

// swallow reads all that clients send and closes.
func (n *ns) swallow(t testing.TB, port int) {
	t.Helper()
	if err := n.do(func() error {
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
