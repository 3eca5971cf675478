package netd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/cni/internal/agent"
	"github.com/berth-project/berth/cni/test/netlab"
)

// programs builds what is tested, once.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-netd-test")
	if err == nil {
		err = os.Chmod(dir, 0o755) // berth-bgp runs as another user
	}
	if err != nil {
		return "", err
	}
	for _, p := range []string{"berth-netd", "berth-cni", "berth-bgp"} {
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, p), "github.com/berth-project/berth/cni/cmd/"+p)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// lab is two networks with a router between them and a host behind it. Nodes 1 and 2 are on the first network, node 3
// on the second.
type lab struct {
	t       *testing.T
	bin     string
	pool    string // the pool's YAML, without cidrs
	v4, v6  bool
	nodes   []*node
	outside *netlab.NS
	fabric  string // the file that all agents watch
	hidden  map[string]bool
	more    string // further top-level keys of the fabric
}

// node is a machine with an agent.
type node struct {
	*netlab.NS
	lab      *lab
	i        int
	name     string
	v4       string // underlay
	v6       string
	port     *netlab.Port
	dir      string
	agent    *netlab.Process
	extra    string // more keys of its entry in the fabric
	settings string // more of its configuration
	pods     int
}

const (
	outside4, outside6 = "203.0.113.9", "2001:db8:c::9"
)

// newLab builds the networks with n nodes and starts the agents. far puts the last node behind the router.
func newLab(t *testing.T, pool string, v4, v6 bool, n int, far bool) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root: network namespaces")
	}
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, bin: bin, pool: pool, v4: v4, v6: v6, fabric: filepath.Join(t.TempDir(), "fabric.yaml"), hidden: map[string]bool{}}
	a, b, c := netlab.NewSwitch(t), netlab.NewSwitch(t), netlab.NewSwitch(t)
	r := netlab.NewRouter(t)
	a.Plug(r, "a0", 1500, "192.0.2.254/24", "2001:db8:a::fe/64")
	b.Plug(r, "b0", 1500, "198.51.100.254/24", "2001:db8:b::fe/64")
	c.Plug(r, "c0", 1500, "203.0.113.254/24", "2001:db8:c::fe/64")
	l.outside = netlab.New(t)
	c.Plug(l.outside, "eth0", 1500, outside4+"/24", outside6+"/64")
	l.outside.Run("ip route add default via 203.0.113.254", "ip -6 route add default via 2001:db8:c::fe")
	for i := 1; i <= n; i++ {
		nd := &node{NS: netlab.New(t), lab: l, i: i, name: fmt.Sprintf("n%d", i), dir: t.TempDir()}
		sw, net4, net6 := a, "192.0.2.", "2001:db8:a::"
		if far && i == n {
			sw, net4, net6 = b, "198.51.100.", "2001:db8:b::"
		}
		nd.v4, nd.v6 = fmt.Sprintf("%s%d", net4, i), fmt.Sprintf("%s%d", net6, i)
		nd.port = sw.Plug(nd.NS, "eth0", 1500)
		nd.plugAddresses(net4, net6)
		l.nodes = append(l.nodes, nd)
	}
	l.write()
	for _, nd := range l.nodes {
		nd.start()
	}
	for _, nd := range l.nodes {
		nd.awaitCNI()
	}
	l.warm()
	return l
}

// warm waits until the underlay itself works: for a second or two after a link came up IPv6 answers no solicitation.
func (l *lab) warm() {
	l.t.Helper()
	for _, from := range l.nodes {
		for _, a := range append(l.nodes[0].addrs(), l.nodes[len(l.nodes)-1].addrs()...) {
			netlab.Until(l.t, 10*time.Second, from.name+" reaches "+a, func() bool { return reaches(from.NS, a, 100) == nil })
		}
		if l.v6 {
			netlab.Until(l.t, 10*time.Second, from.name+" reaches the outside", func() bool { return reaches(from.NS, outside6, 100) == nil })
		}
	}
}

func (n *node) plugAddresses(net4, net6 string) {
	if n.lab.v4 {
		n.port.Address(n.v4 + "/24")
		n.Run("ip route add default via " + net4 + "254")
	}
	if n.lab.v6 {
		n.port.Address(n.v6 + "/64")
		n.Run("ip -6 route add default via " + net6 + "fe")
	}
}

// write replaces the fabric file by rename.
func (l *lab) write() {
	l.t.Helper()
	var cidrs []string
	if l.v4 {
		cidrs = append(cidrs, "10.244.0.0/16")
	}
	if l.v6 {
		cidrs = append(cidrs, "'fd00:10::/48'")
	}
	text := l.more + fmt.Sprintf("pools:\n- {name: default, cidrs: [%s], %s}\nnodes:\n", strings.Join(cidrs, ", "), l.pool)
	for _, n := range l.nodes {
		if !l.hidden[n.name] {
			text += n.entry()
		}
	}
	l.writeText(text)
}

func (l *lab) writeText(text string) {
	l.t.Helper()
	if err := errors.Join(os.WriteFile(l.fabric+".new", []byte(text), 0o600), os.Rename(l.fabric+".new", l.fabric)); err != nil {
		l.t.Fatal(err)
	}
}

func (n *node) entry() string {
	var addrs, blocks []string
	if n.lab.v4 {
		addrs, blocks = append(addrs, n.v4), append(blocks, fmt.Sprintf("10.244.%d.0/24", n.i))
	}
	if n.lab.v6 {
		addrs, blocks = append(addrs, "'"+n.v6+"'"), append(blocks, fmt.Sprintf("'fd00:10:0:%d::/64'", n.i))
	}
	return fmt.Sprintf("- {name: %s, addresses: [%s], podCIDRs: [%s]%s}\n", n.name, strings.Join(addrs, ", "), strings.Join(blocks, ", "), n.extra)
}

func (n *node) file(name string) string { return filepath.Join(n.dir, name) }

// start runs the agent in the node.
func (n *node) start(env ...string) {
	n.lab.t.Helper()
	conf := fmt.Sprintf("node: %s\nfabric: %s\nstate: %s\nroot: %s\ncni: {dir: %s, stateDir: %s}\nbgp: {program: %s}\n",
		n.name, n.lab.fabric, n.file("run"), n.file("lib"), n.file("net.d"), n.file("cni"), filepath.Join(n.lab.bin, "berth-bgp")) + n.settings
	if err := os.WriteFile(n.file("netd.yaml"), []byte(conf), 0o600); err != nil {
		n.lab.t.Fatal(err)
	}
	n.agent = n.Start(env, filepath.Join(n.lab.bin, "berth-netd"), "--config", n.file("netd.yaml"), "serve")
}

func (n *node) awaitCNI() {
	n.lab.t.Helper()
	netlab.Until(n.lab.t, 10*time.Second, "a CNI configuration on "+n.name, func() bool {
		if n.agent.Ended(0) {
			n.lab.t.Fatalf("the agent of %s ended: %s", n.name, n.agent.Output())
		}
		_, err := os.Stat(n.conflist())
		return err == nil
	})
}

func (n *node) conflist() string { return n.file("net.d/10-berth.conflist") }

// ask is a request on the agent's socket.
func (n *node) ask(path string, q url.Values) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return agent.Ask(ctx, n.file("run/netd.sock"), path, q)
}

func (n *node) status() (s agent.Status, err error) {
	text, err := n.ask("/status", url.Values{"format": {"json"}})
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(text), &s)
}

// pod is an attached namespace.
type pod struct {
	*netlab.NS
	node   *node
	v4, v6 string
	mtu    int
	del    func()
}

// addrs are the pod's, of the families that there are.
func (p *pod) addrs() []string { return present(p.v4, p.v6) }

func (n *node) addrs() []string {
	var all []string
	if n.lab.v4 {
		all = append(all, n.v4)
	}
	if n.lab.v6 {
		all = append(all, n.v6)
	}
	return all
}

func present(all ...string) (out []string) {
	for _, a := range all {
		if a != "" {
			out = append(out, a)
		}
	}
	return out
}

// plugin is the plugin's configuration as a runtime makes it of the list that the agent wrote.
func (n *node) plugin() map[string]any {
	n.lab.t.Helper()
	b, err := os.ReadFile(n.conflist())
	if err != nil {
		n.lab.t.Fatal(err)
	}
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(b, &list); err != nil {
		n.lab.t.Fatal(err)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	return conf
}

// pod attaches a new namespace with the configuration that the agent wrote, as a runtime does; ports is the value of
// runtimeConfig.portMappings or empty.
func (n *node) pod(ports string) *pod {
	n.lab.t.Helper()
	conf := n.plugin()
	if ports != "" {
		conf["runtimeConfig"] = map[string]any{"portMappings": json.RawMessage(ports)}
	}
	p := &pod{NS: netlab.New(n.lab.t), node: n, mtu: int(conf["mtu"].(float64))}
	n.pods++
	id := fmt.Sprintf("pod-%d", n.pods)
	out := n.cni("ADD", id, p, conf)
	p.del = sync.OnceFunc(func() { n.cni("DEL", id, p, conf) })
	n.lab.t.Cleanup(p.del)
	var r struct {
		IPs []struct{ Address string } `json:"ips"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		n.lab.t.Fatalf("%v: %s", err, out)
	}
	for _, a := range r.IPs {
		ip, _, _ := strings.Cut(a.Address, "/")
		if strings.Contains(ip, ":") {
			p.v6 = ip
		} else {
			p.v4 = ip
		}
	}
	return p
}

func (n *node) cni(verb, id string, p *pod, conf map[string]any) []byte {
	n.lab.t.Helper()
	stdin, err := json.Marshal(conf)
	if err != nil {
		n.lab.t.Fatal(err)
	}
	return n.execute(verb, id, p.Path(), string(stdin))
}

// execute runs the plugin.
func (n *node) execute(verb, id, netns, stdin string) []byte {
	n.lab.t.Helper()
	cmd := exec.Command(filepath.Join(n.lab.bin, "berth-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+netns)
	cmd.Stdin = strings.NewReader(stdin)
	var out []byte
	if err := n.Do(func() (err error) { out, err = cmd.Output(); return err }); err != nil {
		n.lab.t.Fatalf("%s %s on %s: %v: %s", verb, id, n.name, err, out)
	}
	return out
}
