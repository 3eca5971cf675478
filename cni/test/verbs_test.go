package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
)

func TestVersions(t *testing.T) {
	n := newNode(t)
	for i, v := range []string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run("v"+v, func(t *testing.T) {
			conf, p, id := n.conf(v, dual), newNS(t), fmt.Sprintf("c%d", i)
			out, err := n.run(call{verb: "ADD", id: id, netns: p.Path(), conf: conf, args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web"})
			if err != nil {
				t.Fatal(err)
			}
			want := v
			if want == "" {
				want = "0.2.0"
			}
			r, err := create.Create(want, out)
			if err != nil {
				t.Fatalf("the reference library refuses the result: %v\n%s", err, out)
			}
			now, err := r.GetAsVersion("1.1.0")
			if err != nil {
				t.Fatalf("convert: %v", err)
			}
			if s := fmt.Sprintf("%+v", now); !strings.Contains(s, "10.99.0.") && r.Version() != want {
				t.Errorf("result %s", s)
			}
			wantCheck := map[bool]int{true: 0, false: 1}[want >= "0.4.0"]
			wantNew := map[bool]int{true: 0, false: 1}[want >= "1.1.0"]
			for _, c := range []struct {
				verb string
				want int
			}{{"CHECK", wantCheck}, {"STATUS", wantNew}, {"ADD", 100}, {"DEL", 0}, {"DEL", 0}} {
				if _, err := n.run(call{verb: c.verb, id: id, netns: p.Path(), conf: conf}); code(err) != c.want {
					t.Errorf("%s: %v, want code %d", c.verb, err, c.want)
				}
			}
			if out := p.sh(t, "ip -o link"); strings.Contains(out, "eth0") {
				t.Errorf("after DEL the namespace has %s", out)
			}
		})
	}
}

func TestNoCommandAndVersion(t *testing.T) {
	n := newNode(t)
	if out, err := n.run(call{}); err != nil || len(out) != 0 {
		t.Errorf("no command: %q, %v", out, err)
	}
	out, err := n.run(call{verb: "VERSION"})
	if err != nil || !strings.Contains(string(out), `"supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("VERSION: %s, %v", out, err)
	}
}

func TestDelWithoutAnything(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", dual)
	if _, err := n.run(call{verb: "DEL", id: "never", conf: conf}); err != nil {
		t.Error("never added:", err)
	}
	p := newNS(t)
	if _, err := n.tryAdd(p, "a", conf, ""); err != nil {
		t.Fatal(err)
	}
	p.Close() // the namespace dies, DEL comes with its path
	if _, err := n.run(call{verb: "DEL", id: "a", netns: "/proc/1/fd/no-such", conf: conf}); err != nil {
		t.Error("namespace gone:", err)
	}
	q := newNS(t)
	if _, err := n.tryAdd(q, "b", conf, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := n.run(call{verb: "DEL", id: "b", conf: conf}); err != nil {
		t.Error("no CNI_NETNS:", err)
	}
	if out := q.sh(t, "ip -o link"); strings.Contains(out, "eth0") {
		t.Error("the interface survived a DEL without CNI_NETNS")
	}
	// State wiped by hand: the link is found by its name.
	if _, err := n.tryAdd(q, "c", conf, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.state); err != nil {
		t.Fatal(err)
	}
	if _, err := n.run(call{verb: "DEL", id: "c", conf: conf}); err != nil {
		t.Error("no state:", err)
	}
}

// refusal is a request that must fail, before anything is touched, with a code and words.
type refusal struct {
	name string
	call call
	code int
	want []string
}

func refusals(n *node, p *ns) []refusal {
	long := strings.Repeat("x", 5<<20)
	base := func(s string) string { return n.conf("1.1.0", s) }
	return []refusal{
		{"no container id", call{verb: "ADD", netns: p.Path(), conf: base("")}, 4, []string{"CNI_CONTAINERID"}},
		{"bad container id", call{verb: "ADD", id: "../x", netns: p.Path(), conf: base("")}, 4, []string{"CNI_CONTAINERID", "../x"}},
		{"no netns", call{verb: "ADD", id: "a", conf: base("")}, 4, []string{"CNI_NETNS"}},
		{"bad ifname", call{verb: "ADD", id: "a", ifname: "a/b", netns: p.Path(), conf: base("")}, 4, []string{"CNI_IFNAME"}},
		{"dots ifname", call{verb: "ADD", id: "a", ifname: "..", netns: p.Path(), conf: base("")}, 4, []string{"CNI_IFNAME"}},
		{"long ifname", call{verb: "ADD", id: "a", ifname: "abcdefghijklmnop", netns: p.Path(), conf: base("")}, 4, []string{"CNI_IFNAME"}},
		{"lo", call{verb: "ADD", id: "a", ifname: "lo", netns: p.Path(), conf: base("")}, 4, []string{"lo"}},
		{"unknown verb", call{verb: "FROB", id: "a", conf: base("")}, 4, []string{"FROB"}},
		{"netns missing", call{verb: "ADD", id: "a", netns: "/nowhere", conf: base("")}, 8, []string{"/nowhere"}},
		{"netns is a file", call{verb: "ADD", id: "a", netns: "/etc/passwd", conf: base("")}, 8, []string{"not a network namespace"}},
		{"netns of another kind", call{verb: "ADD", id: "a", netns: "/proc/self/ns/uts", conf: base("")}, 8, []string{"not a network namespace"}},
		{"own netns", call{verb: "ADD", id: "a", netns: "/proc/self/ns/net", conf: base("")}, 8, []string{"own"}},
		{"not JSON", call{verb: "ADD", id: "a", netns: p.Path(), conf: "{"}, 6, nil},
		{"NUL", call{verb: "ADD", id: "a", netns: p.Path(), conf: "\x00"}, 6, nil},
		{"too long", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"dns":{"domain":"` + long + `"}`)}, 6, []string{"bytes"}},
		{"version", call{verb: "ADD", id: "a", netns: p.Path(), conf: n.conf("2.0.0", "")}, 1, []string{"2.0.0"}},
		{"no name", call{verb: "ADD", id: "a", netns: p.Path(), conf: `{"cniVersion":"1.1.0","type":"berth"}`}, 7, []string{"name"}},
		{"hostile name", call{verb: "ADD", id: "a", netns: p.Path(), conf: `{"cniVersion":"1.1.0","type":"berth","name":"../x"}`}, 7, []string{"../x"}},
		{"unknown key", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"ipMask":true`)}, 2, []string{`"ipMask"`, "true", `"ipMasq"`}},
		{"unknown range key", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"ranges":[{"subnet":"10.0.0.0/24","start":"10.0.0.3"}]`)}, 2, []string{"ranges[0].start", "10.0.0.3"}},
		{"wrong type", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"mtu":"big"`)}, 6, []string{"mtu"}},
		{"mtu", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"mtu":67`)}, 7, []string{"mtu", "67"}},
		{"mtu and IPv6", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(dual + `,"mtu":1200`)}, 7, []string{"1280"}},
		{"subnet", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"ranges":[{"subnet":"nonsense"}]`)}, 7, []string{"subnet", "nonsense"}},
		{"host bits", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"ranges":[{"subnet":"10.0.0.1/24"}]`)}, 7, []string{"10.0.0.0/24"}},
		{"start outside", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"ranges":[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]`)}, 7, []string{"rangeStart", "10.0.1.1"}},
		{"overlap", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"ranges":[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.0/16"}]`)}, 7, []string{"overlaps"}},
		{"args", call{verb: "ADD", id: "a", netns: p.Path(), args: "IP", conf: base("")}, 4, []string{"CNI_ARGS", "IP"}},
		{"args ip", call{verb: "ADD", id: "a", netns: p.Path(), args: "IP=1.2.3", conf: base("")}, 7, []string{"CNI_ARGS", "1.2.3"}},
		{"args ip elsewhere", call{verb: "ADD", id: "a", netns: p.Path(), args: "IP=9.9.9.9", conf: base("")}, 7, []string{"9.9.9.9", "10.88.0.0/16"}},
		{"mac", call{verb: "ADD", id: "a", netns: p.Path(), args: "MAC=01:00:00:00:00:00", conf: base("")}, 7, []string{"mac", "01:00"}},
		{"port", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":80}]}`)}, 7, []string{"hostPort", "70000"}},
		{"protocol", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]}`)}, 7, []string{"icmp"}},
		{"host ip", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"x;y"}]}`)}, 7, []string{"hostIP", "x;y"}},
		{"prevResult", call{verb: "ADD", id: "a", netns: p.Path(), conf: base(`,"prevResult":{"cniVersion":"1.1.0"}`)}, 7, []string{"prevResult"}},
		{"check unknown", call{verb: "CHECK", id: "nobody", netns: p.Path(), conf: base("")}, 3, []string{"nobody"}},
		{"gc without a list", call{verb: "GC", conf: base("")}, 7, []string{"cni.dev/valid-attachments"}},
		{"type", call{verb: "ADD", id: "a", netns: p.Path(), conf: `{"cniVersion":"1.1.0","name":"x","type":"calico"}`}, 2, []string{"type", "calico", "bridge"}},
	}
}

func TestRefusals(t *testing.T) {
	n := newNode(t)
	for _, c := range refusals(n, newNS(t)) {
		t.Run(c.name, func(t *testing.T) {
			_, err := n.run(c.call)
			if code(err) != c.code {
				t.Fatalf("got %v, want code %d", err, c.code)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not name %q", err, w)
				}
			}
		})
	}
}

func TestInterfaceExists(t *testing.T) {
	n := newNode(t)
	p := newNS(t)
	p.sh(t, "ip link add eth0 type veth peer name x0")
	if _, err := n.tryAdd(p, "a", n.conf("1.1.0", dual), ""); code(err) != 100 || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("got %v", err)
	}
	if out := p.sh(t, "ip -o link show eth0"); !strings.Contains(out, "eth0") {
		t.Error("somebody else's interface was deleted")
	}
}

func TestExhaustedThenDeadNamespaces(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/29"}]`)
	var spaces []*ns
	seen := map[string]bool{}
	for i := range 6 {
		s := newNS(t)
		p, err := n.tryAdd(s, fmt.Sprint("c", i), conf, "")
		if err != nil {
			t.Fatal(err)
		}
		if seen[p.v4] {
			t.Errorf("%s was given out twice", p.v4)
		}
		seen[p.v4] = true
		spaces = append(spaces, s)
	}
	if _, err := n.tryAdd(newNS(t), "c6", conf, ""); code(err) != 11 || !strings.Contains(err.Error(), "10.99.0.1-10.99.0.6 of 10.99.0.0/29") {
		t.Errorf("seventh ADD: %v", err)
	}
	if _, err := n.run(call{verb: "STATUS", conf: conf}); code(err) != 50 || !strings.Contains(err.Error(), "10.99.0.0/29") {
		t.Errorf("STATUS: %v", err)
	}
	// A reboot of the runtime lost three DELs: the next ADD finds the addresses by itself.
	for _, s := range spaces[:3] {
		s.Close()
	}
	eventually(t, func() bool { return strings.Count(n.sh(t, "ip -o link"), "bth") == 3 })
	if _, err := n.tryAdd(newNS(t), "c7", conf, ""); err != nil {
		t.Errorf("after three namespaces died: %v", err)
	}
	if _, err := n.run(call{verb: "GC", conf: n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/29"}],"cni.dev/valid-attachments":[]`)}); err != nil {
		t.Error(err)
	}
}

func TestGC(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", dual)
	a, b := newNS(t), newNS(t)
	for id, s := range map[string]*ns{"keep": a, "drop": b} {
		if _, err := n.tryAdd(s, id, conf, ""); err != nil {
			t.Fatal(err)
		}
	}
	other := strings.Replace(conf, `"podnet"`, `"othernet"`, 1)
	p, err := n.tryAdd(newNS(t), "drop", other, "")
	if err != nil {
		t.Fatal(err)
	}
	gc := n.conf("1.1.0", dual+`,"cni.dev/valid-attachments":[{"containerID":"keep","ifname":"eth0"}]`)
	if _, err := n.run(call{verb: "GC", conf: gc}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]int{"keep": 0, "drop": 3} {
		s := map[string]*ns{"keep": a, "drop": b}[id]
		if _, err := n.run(call{verb: "CHECK", id: id, netns: s.Path(), conf: conf}); code(err) != want {
			t.Errorf("CHECK %s: %v", id, err)
		}
	}
	if _, err := n.run(call{verb: "CHECK", id: "drop", netns: p.Path(), conf: other}); err != nil {
		t.Error("GC reached into another network:", err)
	}
	p.del(t)
	wider := strings.Replace(n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/16"}]`), `"podnet"`, `"wide"`, 1)
	if _, err := n.tryAdd(newNS(t), "wide", wider, ""); code(err) != 7 || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("overlapping subnets of two networks: %v", err)
	}
	if _, err := n.run(call{verb: "GC", conf: n.conf("1.1.0", dual+`,"cni.dev/attachments":[]`)}); err != nil {
		t.Fatal(err)
	}
}

func TestParallel(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", `,"ranges":[{"subnet":"10.99.0.0/24"}]`)
	const count = 64
	spaces := make([]*ns, count)
	for i := range spaces {
		spaces[i] = newNS(t)
	}
	pods := make([]*pod, count)
	each := func(fn func(i int)) {
		var wg sync.WaitGroup
		for i := range count {
			wg.Go(func() { fn(i) })
		}
		wg.Wait()
	}
	for round := range 2 {
		each(func(i int) {
			var err error
			if pods[i], err = n.tryAdd(spaces[i], fmt.Sprintf("r%dc%d", round, i), conf, ""); err != nil {
				t.Errorf("ADD %d: %v", i, err)
			}
		})
		seen := map[string]int{}
		for i, p := range pods {
			if p == nil {
				t.FailNow()
			}
			if j, dup := seen[p.v4]; dup {
				t.Errorf("pods %d and %d have %s", i, j, p.v4)
			}
			seen[p.v4] = i
		}
		each(func(i int) { pods[i].del(t) })
	}
}

func TestLoopback(t *testing.T) {
	n := newNode(t)
	p := newNS(t)
	link := filepath.Join(t.TempDir(), "loopback")
	if err := os.Symlink(n.bin, link); err != nil {
		t.Fatal(err)
	}
	conf := `{"cniVersion":"1.0.0","name":"lo-net","type":"loopback"}`
	for _, c := range []call{{verb: "ADD", bin: link}, {verb: "CHECK"}, {verb: "DEL"}} {
		c.id, c.ifname, c.netns, c.conf = "a", "lo", p.Path(), conf
		out, err := n.run(c)
		if err != nil {
			t.Fatalf("%s: %v", c.verb, err)
		}
		if c.verb == "ADD" && !strings.Contains(string(out), "127.0.0.1/8") {
			t.Errorf("result %s", out)
		}
	}
}

func TestLinksNothingHeavy(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/berth-project/berth/cni/cmd/berth-cni").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, bad := range []string{"google.golang.org", "net/http", "k8s.io", "net", "reflect/x", "github.com/containernetworking"} {
			if dep == bad || strings.HasPrefix(dep, bad+"/") && bad != "net" {
				t.Errorf("berth-cni links %s", dep)
			}
		}
	}
}

// TestForeignLinkStays: a link that has an attachment's name and somebody else's mark is not ours to delete.
func TestForeignLinkStays(t *testing.T) {
	n := newNode(t)
	p, err := n.tryAdd(newNS(t), "a", n.conf("1.1.0", dual), "")
	if err != nil {
		t.Fatal(err)
	}
	p.del(t)
	n.sh(t, "ip link add "+p.host+" type veth peer name other")
	defer n.sh(t, "ip link del "+p.host)
	n.sh(t, "ip link set "+p.host+" alias somebody-else")
	p.del(t)
	if out := n.sh(t, "ip -o link"); !strings.Contains(out, p.host) {
		t.Errorf("%s, which carries somebody else's mark, was deleted", p.host)
	}
}

// TestSecondAdd: an ADD of what is attached is refused, and takes nothing from the attachment that is there.
func TestSecondAdd(t *testing.T) {
	n := newNode(t)
	p := n.addPod(t, "a", dual)
	before := n.census(t)
	for _, space := range []*ns{p.ns, newNS(t)} { // of the same namespace, and of another
		if _, err := n.tryAdd(space, "a", n.conf("1.1.0", dual), ""); err == nil {
			t.Error("it was attached twice")
		}
		if after := n.census(t); after != before {
			t.Errorf("before\n%s\nafter\n%s", before, after)
		}
		if out := p.sh(t, "ip -o addr show eth0"); !strings.Contains(out, p.v4+"/") {
			t.Errorf("the attached pod has %s", out)
		}
	}
}
