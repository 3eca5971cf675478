package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/podnet"
)

// TestKilledAtEachFailpoint ends ADD, DEL, GC and repair by SIGKILL at every place where they changed something,
// and lets the next verb converge.
func TestKilledAtEachFailpoint(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", dual+ports)
	witness := n.addPod(t, "witness", dual)
	witness.serve(t, 80)
	for _, point := range podnet.Failpoints() {
		for _, next := range []string{"ADD", "DEL", "GC", "STATUS"} {
			killAndConverge(t, n, witness, conf, point, next)
		}
	}
	expect(t, "the witness", n.ns, "tcp", witness.v4, 80, "")
}

// killAndConverge ends one verb at a point, then lets next be the first that comes after it.
func killAndConverge(t *testing.T, n *node, witness *pod, conf, point, next string) {
	t.Helper()
	verb := strings.Split(point, ".")[1]
	id, s := point+"-"+next, newNS(t)
	c := call{id: id, netns: s.Path(), conf: conf, env: []string{"BERTH_FAIL=" + point + "=kill"}}
	gc := c
	gc.verb, gc.env = "GC", nil
	gc.conf = n.conf("1.1.0", dual+ports+`,"cni.dev/valid-attachments":[{"containerID":"witness","ifname":"eth0"}]`)
	switch verb {
	case "add":
		c.verb = "ADD"
	case "del", "gc", "repair":
		first := c
		first.verb, first.env = "ADD", nil
		if verb == "repair" {
			first.env = []string{"BERTH_FAIL=cni.add.host_end=kill"}
		}
		if _, err := n.run(first); (err != nil) != (verb == "repair") {
			t.Fatalf("%s: ADD before: %v", point, err)
		}
		c.verb = map[string]string{"del": "DEL", "gc": "GC", "repair": "DEL"}[verb]
		if verb == "gc" {
			c.conf = gc.conf
		}
	}
	if _, err := n.run(c); !errors.Is(err, errKilled) {
		t.Fatalf("%s was not met by %s: %v", point, c.verb, err)
	}
	c.verb, c.env, c.conf = next, nil, conf
	if next == "GC" {
		c = gc
	}
	if _, err := n.run(c); err != nil && !(next == "ADD" && code(err) == 100) {
		t.Errorf("%s, then %s: %v", point, next, err)
	}
	if next == "ADD" {
		if _, err := n.run(call{verb: "CHECK", id: id, netns: s.Path(), conf: conf}); err != nil {
			t.Errorf("%s, then ADD, then CHECK: %v", point, err)
		}
	}
	for range 2 {
		if _, err := n.run(call{verb: "DEL", id: id, netns: s.Path(), conf: conf}); err != nil {
			t.Errorf("%s, then %s, then DEL: %v", point, next, err)
		}
	}
	if _, err := n.run(gc); err != nil {
		t.Errorf("%s: GC: %v", point, err)
	}
	if c := n.census(t); strings.Count(c, "bth") != strings.Count(n.censusOf(t, witness), "bth") {
		t.Fatalf("%s, then %s leaves\n%s", point, next, c)
	}
	s.Close()
}

// censusOf is the part of the census that speaks of one pod.
func (n *node) censusOf(t testing.TB, p *pod) string {
	var out []string
	for _, l := range strings.Split(n.census(t), "\n") {
		if strings.Contains(l, p.host) {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// TestKilledAtEachSystemCall does the same without any help from the program: strace kills it before the Nth
// call of each kind that changes something.
func TestKilledAtEachSystemCall(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is not installed (make setup)")
	}
	n := newNode(t)
	conf := n.conf("1.1.0", dual+ports)
	trace := func(verb, id, netns, kind string, nth int) (killed bool) {
		c := call{verb: verb, id: id, netns: netns, conf: conf}
		cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace="+kind,
			"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", kind, nth), n.bin)
		cmd.Env = []string{"CNI_COMMAND=" + c.verb, "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0", "CNI_NETNS=" + netns}
		cmd.Stdin = strings.NewReader(conf)
		err := n.Do(cmd.Run)
		return err != nil
	}
	runs := 0
	for _, verb := range []string{"ADD", "DEL"} {
		for _, kind := range []string{"sendto", "pwrite64", "renameat", "unlinkat", "clone", "setns"} {
			for nth := 1; nth < 40; nth++ {
				id, s := fmt.Sprintf("%s-%s-%d", verb, kind, nth), newNS(t)
				if verb == "DEL" {
					if _, err := n.tryAdd(s, id, conf, ""); err != nil {
						t.Fatalf("%s: ADD before: %v", id, err)
					}
				}
				killed := trace(verb, id, s.Path(), kind, nth)
				runs++
				if _, err := n.run(call{verb: "DEL", id: id, netns: s.Path(), conf: conf}); err != nil {
					t.Errorf("%s: DEL: %v", id, err)
				}
				// The kernel may still be deleting on behalf of the child that a killed DEL left.
				eventually(t, func() bool { return n.census(t) == "" })
				s.Close()
				if !killed {
					break
				}
			}
		}
	}
	t.Logf("%d runs", runs)
}

func TestDamagedState(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/29"}]`)
	s := newNS(t)
	a, err := n.tryAdd(s, "a", conf, "")
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(glob string) {
		files, _ := filepath.Glob(filepath.Join(n.state, glob))
		if len(files) == 0 {
			t.Fatalf("no %s", glob)
		}
		for _, f := range files {
			if err := os.WriteFile(f, []byte("spoilt\x00"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	others := func(prefix string) {
		for i := range 5 {
			s := newNS(t)
			p, err := n.tryAdd(s, fmt.Sprint(prefix, i), conf, "")
			if err != nil {
				t.Fatalf("%s%d: %v", prefix, i, err)
			}
			if p.v4 == a.v4 {
				t.Fatalf("%s: the address of a living pod was given out", prefix)
			}
			defer p.del(t)
		}
	}
	spoil("pools/*")
	others("pool")
	spoil("networks/*")
	others("network")
	// A lost record keeps its address while its link lives, and DEL still takes the link away.
	spoil("attachments/*")
	spoil("lock")
	others("record")
	if _, err := n.run(call{verb: "DEL", id: "a", netns: s.Path(), conf: conf}); err != nil {
		t.Error(err)
	}
	if out := s.sh(t, "ip -o link"); strings.Contains(out, "eth0") {
		t.Error("DEL left the interface")
	}
	if q, _ := filepath.Glob(filepath.Join(n.state, "quarantine", "*")); len(q) == 0 {
		t.Error("nothing in quarantine")
	}
}

func TestAnotherBoot(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/30"}]`)
	for i := range 2 {
		s := newNS(t)
		if _, err := n.tryAdd(s, fmt.Sprint("old", i), conf, ""); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	eventually(t, func() bool { return !strings.Contains(n.sh(t, "ip -o link"), "bth") })
	lock := filepath.Join(n.state, "lock")
	b, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock, append([]byte("00000000"), b[8:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	// The first verb, whichever it is, forgets them all: their rules must not be made again for whoever comes.
	if _, err := n.run(call{verb: "DEL", id: "never", conf: conf}); err != nil {
		t.Error("the first verb after a reboot:", err)
	}
	if left, err := filepath.Glob(filepath.Join(n.state, "attachments", "*")); err != nil || len(left) > 0 {
		t.Errorf("records of another boot: %v, %v", left, err)
	}
	for i := range 2 {
		if p, err := n.tryAdd(newNS(t), fmt.Sprint("new", i), conf, ""); err != nil {
			t.Errorf("after a reboot: %v", err)
		} else {
			defer p.del(t)
		}
	}
	if _, err := n.run(call{verb: "DEL", id: "old0", conf: conf}); err != nil {
		t.Error("DEL of another boot's pod:", err)
	}
}

func TestFlushedRuleset(t *testing.T) {
	n := newNode(t)
	a := n.addPod(t, "a", dual+ports)
	a.serve(t, 80)
	for _, verb := range []string{"STATUS", "ADD", "DEL"} {
		n.sh(t, "nft flush ruleset")
		n.sh(t, "nft add table inet foreign")
		n.sh(t, "nft add chain inet foreign c")
		expect(t, "flushed", n.outside, "tcp", nodeIP4, 8080, "-")
		if _, err := n.run(call{verb: "CHECK", id: a.id, netns: a.Path(), conf: a.conf}); code(err) != 101 {
			t.Errorf("CHECK after a flush: %v", err)
		}
		b := newNS(t)
		if verb == "DEL" {
			b = a.ns // DEL of a pod that is not there
		}
		id := "b"
		if verb == "DEL" {
			id = "b0"
			p, err := n.tryAdd(newNS(t), id, n.conf("1.1.0", dual), "")
			if err != nil {
				t.Fatal(err)
			}
			b = p.ns
			n.sh(t, "nft delete table inet berth-node")
		}
		if _, err := n.run(call{verb: verb, id: id, netns: b.Path(), conf: n.conf("1.1.0", dual)}); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
		expect(t, "after "+verb, n.outside, "tcp", nodeIP4, 8080, outIP4)
		if out := n.sh(t, "nft list ruleset"); !strings.Contains(out, "table inet foreign") || !strings.Contains(out, "chain c") {
			t.Errorf("%s touched a foreign table", verb)
		}
		if verb == "ADD" {
			if _, err := n.run(call{verb: "DEL", id: id, netns: b.Path(), conf: n.conf("1.1.0", dual)}); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestCheckFinds(t *testing.T) {
	n := newNode(t)
	a := n.addPod(t, "a", dual)
	for _, c := range []struct {
		in         *ns
		break_, ok string
		want       string
	}{
		{a.ns, "ip addr del " + a.v4 + "/32 dev eth0", "ip addr add " + a.v4 + "/32 dev eth0", "lacks address " + a.v4},
		{a.ns, "ip route del default", "ip route add default via 169.254.1.1 dev eth0 onlink", "default route"},
		{n.ns, "ip route del " + a.v4, "ip route add " + a.v4 + " dev " + a.host + " proto 183 scope link", "no route to " + a.v4},
		{a.ns, "ip link set eth0 address 02:00:00:00:00:99", "", "has MAC"},
		{n.ns, "ip link set " + a.host + " down", "", "is down"},
		{n.ns, "ip link del " + a.host, "", "is missing"},
	} {
		c.in.sh(t, c.break_)
		_, err := n.run(call{verb: "CHECK", id: "a", netns: a.Path(), conf: a.conf})
		if code(err) != 101 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("after %q: %v", c.break_, err)
		}
		if c.ok != "" {
			c.in.sh(t, c.ok)
			if strings.Contains(c.break_, "addr del") {
				a.sh(t, "ip route replace default via 169.254.1.1 dev eth0 onlink")
			}
		}
	}
}

func TestWishes(t *testing.T) {
	n := newNode(t)
	for i, c := range []struct{ args, extra string }{
		{"IgnoreUnknown=1;IP=10.99.0.77;MAC=02:00:00:00:00:77", ""},
		{"", `,"args":{"cni":{"ips":["10.99.0.77"],"mac":"02:00:00:00:00:77"}}`},
		{"IP=10.99.0.1", `,"runtimeConfig":{"ips":["10.99.0.77/24","fd99::77"],"mac":"02:00:00:00:00:77"}`},
	} {
		conf := n.conf("1.1.0", dual+`,"mtu":1400`+c.extra)
		p, err := n.tryAdd(newNS(t), fmt.Sprint("w", i), conf, c.args)
		if err != nil {
			t.Fatal(err)
		}
		link := p.sh(t, "ip -o link show eth0")
		if p.v4 != "10.99.0.77" || !strings.Contains(link, "02:00:00:00:00:77") || !strings.Contains(link, "mtu 1400") || i == 2 && p.v6 != "fd99::77" {
			t.Errorf("case %d: %s %s %s", i, p.v4, p.v6, link)
		}
		if _, err := n.tryAdd(newNS(t), "second", n.conf("1.1.0", dual), "IP=10.99.0.77"); code(err) != 100 || !strings.Contains(err.Error(), "10.99.0.77") {
			t.Errorf("an address twice: %v", err)
		}
		p.del(t)
	}
}
