package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth/cni/test/netlab"
)

// build compiles the plugin once for all tests.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-cni-test")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "berth-cni")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "github.com/berth-project/berth/cni/cmd/berth-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// ns is a network namespace that lives as long as its descriptor.
type ns struct{ *netlab.NS }

func newNS(t testing.TB) *ns {
	t.Helper()
	return &ns{netlab.Bare(t)}
}

// sh runs one command (no shell) in the namespace.
func (n *ns) sh(t testing.TB, line string) string {
	t.Helper()
	out, err := n.Try(line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// node is a machine: its namespace, a client outside, and the plugin's state.
type node struct {
	*ns
	outside *ns
	state   string
	bin     string
}

const (
	nodeIP4, outIP4 = "192.0.2.1", "192.0.2.2"
	nodeIP6, outIP6 = "2001:db8::1", "2001:db8::2"
)

// newNode makes a node and, at the end, checks that nothing was left in it.
func newNode(t testing.TB) *node {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{ns: newNS(t), outside: newNS(t), state: filepath.Join(t.TempDir(), "state"), bin: bin}
	n.sh(t, fmt.Sprintf("ip link add up0 type veth peer name up0 netns %s", n.outside.Path()))
	for _, e := range []struct {
		ns                    *ns
		v4, v6, mac, peer, to string
	}{
		{n.ns, nodeIP4, nodeIP6, "02:00:00:00:01:01", "02:00:00:00:01:02", outIP6},
		{n.outside, outIP4, outIP6, "02:00:00:00:01:02", "02:00:00:00:01:01", nodeIP6},
	} {
		for _, line := range []string{
			"ip link set lo up", "ip addr add " + e.v4 + "/24 dev up0", "ip addr add " + e.v6 + "/64 dev up0 nodad",
			"ip link set up0 address " + e.mac, "ip link set up0 up",
			// For a second after a link came up the kernel leaves the first neighbour solicitation unanswered.
			"ip neigh add " + e.to + " lladdr " + e.peer + " dev up0",
		} {
			e.ns.sh(t, line)
		}
	}
	n.sh(t, "ip route add default via "+outIP4)
	n.sh(t, "ip -6 route add default via "+outIP6)
	before := n.census(t)
	t.Cleanup(func() {
		if after := n.census(t); !t.Failed() && after != before {
			t.Errorf("leak: before\n%s\nafter\n%s", before, after)
		}
	})
	return n
}

// census lists everything that an attachment could leave behind. The empty table and the pools stay.
func (n *node) census(t testing.TB) string {
	var lines []string
	for _, l := range strings.Split(n.sh(t, "ip -o link")+n.sh(t, "ip -o route")+n.sh(t, "ip -o -6 route")+n.sh(t, "ip -o neigh show nud permanent"), "\n") {
		if strings.Contains(l, "bth") {
			lines = append(lines, l)
		}
	}
	for _, l := range strings.Split(n.sh(t, "nft list ruleset"), "\n") {
		if strings.Contains(l, "\"bth0") || (strings.Contains(l, "elements = { 10.") || strings.Contains(l, "elements = { fd")) && !strings.Contains(l, "/") {
			lines = append(lines, l)
		}
	}
	files, _ := filepath.Glob(filepath.Join(n.state, "attachments", "*"))
	lines = append(lines, files...)
	hidden, _ := filepath.Glob(filepath.Join(n.state, "*", ".tmp*"))
	lines = append(lines, hidden...)
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// call is one start of the plugin.
type call struct {
	verb, id, ifname, netns, args, conf string
	env                                 []string
	bin                                 string
}

// fault is the error JSON.
type fault struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

func (f *fault) Error() string { return fmt.Sprintf("code %d: %s %s", f.Code, f.Msg, f.Details) }

var errKilled = errors.New("killed")

// run executes the plugin in the node's namespace.
func (n *node) run(c call) (out []byte, err error) {
	if c.ifname == "" {
		c.ifname = "eth0"
	}
	bin := n.bin
	if c.bin != "" {
		bin = c.bin
	}
	cmd := exec.Command(bin)
	cmd.Env = append([]string{
		"CNI_COMMAND=" + c.verb, "CNI_CONTAINERID=" + c.id, "CNI_IFNAME=" + c.ifname,
		"CNI_NETNS=" + c.netns, "CNI_ARGS=" + c.args, "PATH=" + os.Getenv("PATH"),
	}, c.env...)
	cmd.Stdin = strings.NewReader(c.conf)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = n.Do(cmd.Run)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(interface{ Signaled() bool }); ok && ws.Signaled() {
			return nil, errKilled
		}
		f := &fault{}
		if jerr := json.Unmarshal(stdout.Bytes(), f); jerr != nil {
			return nil, fmt.Errorf("%w: %s %s", err, stdout.String(), stderr.String())
		}
		return stdout.Bytes(), f
	}
	return stdout.Bytes(), err
}

// backend is a JSON member with a leading comma: where rules go, for the tests that are run for each.
var backend string

// conf is a configuration with the node's state directory; extra is JSON members with a leading comma.
func (n *node) conf(version, extra string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"podnet","type":"berth","stateDir":%q%s%s}`, version, n.state, backend, extra)
}

const dual = `,"ranges":[{"subnet":"10.99.0.0/24"},{"subnet":"fd99::/64"}]`

// result is a 1.x result.
type result struct {
	CNIVersion string `json:"cniVersion"`
	Interfaces []struct{ Name, Mac, Sandbox string }
	IPs        []struct{ Address, Gateway string } `json:"ips"`
}

// pod is an attached namespace.
type pod struct {
	*ns
	id     string
	conf   string
	node   *node
	v4, v6 string
	host   string
}

func ip(s string) string { a, _, _ := strings.Cut(s, "/"); return a }

func (n *node) tryAdd(p *ns, id, conf, args string) (*pod, error) {
	out, err := n.run(call{verb: "ADD", id: id, netns: p.Path(), conf: conf, args: args})
	if err != nil {
		return nil, err
	}
	var r result
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	pd := &pod{ns: p, id: id, conf: conf, node: n, host: r.Interfaces[0].Name}
	for _, a := range r.IPs {
		if strings.Contains(a.Address, ":") {
			pd.v6 = ip(a.Address)
		} else {
			pd.v4 = ip(a.Address)
		}
	}
	return pd, nil
}

// addPod attaches a new namespace and takes it off at the end.
func (n *node) addPod(t testing.TB, id, extra string) *pod {
	t.Helper()
	p, err := n.tryAdd(newNS(t), id, n.conf("1.1.0", extra), "")
	if err != nil {
		t.Fatalf("ADD %s: %v", id, err)
	}
	t.Cleanup(func() { p.del(t) })
	return p
}

func (p *pod) del(t testing.TB) {
	t.Helper()
	if _, err := p.node.run(call{verb: "DEL", id: p.id, netns: p.Path(), conf: p.conf}); err != nil {
		t.Errorf("DEL %s: %v", p.id, err)
	}
}

func code(err error) int {
	var f *fault
	if errors.As(err, &f) {
		return f.Code
	}
	if err != nil {
		return -1
	}
	return 0
}
