package tenants

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	conform "github.com/berth-project/berth/e2e/cni-conform"
)

// TestMain runs the tests in namespaces of their own.
func TestMain(m *testing.M) { os.Exit(conform.Isolate(m.Run)) }

// node is a host with our plugins.
type node struct {
	*conform.Host
	t   *testing.T
	dir string
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "berth"), "./cni/cmd/berth-cni")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"bridge", "portmap"} {
		if err := os.Link(filepath.Join(dir, "berth"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h, err := conform.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return &node{Host: h, t: t, dir: dir}
}

// pod is an attached container.
type pod struct {
	*conform.Netns
	id, ip string
}

func (n *node) container(id string) *pod {
	ns, err := n.NewContainer()
	if err != nil {
		n.t.Fatal(err)
	}
	return &pod{Netns: ns, id: id}
}

// call executes a plugin for one interface of a pod.
func (n *node) call(verb, plugin, ifName string, p *pod, conf string) string {
	n.t.Helper()
	env := []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.id, "CNI_IFNAME=" + ifName, "CNI_NETNS=" + p.Path, "CNI_PATH=" + n.dir}
	out, _, err := n.Run(env, conf, filepath.Join(n.dir, plugin))
	if err != nil {
		n.t.Fatalf("%s %s: %v", verb, plugin, err)
	}
	return string(out)
}

const berthConf = `{"cniVersion":"1.0.0","name":"pods","type":"berth","ranges":[{"subnet":"10.77.0.0/24"}]%s}`

func conf(more string) string { return fmt.Sprintf(berthConf, more) }

func (n *node) pod(id, more string) *pod {
	p := n.container(id)
	p.ip = address(n.call("ADD", "berth", "eth0", p, conf(more)))
	return p
}

func address(result string) string {
	var r struct{ IPs []struct{ Address string } }
	_ = json.Unmarshal([]byte(result), &r) // an empty address fails the test soon enough
	if len(r.IPs) == 0 {
		return ""
	}
	ip, _, _ := strings.Cut(r.IPs[0].Address, "/")
	return ip
}

func (n *node) expect(what string, from *conform.Netns, addr, want string) {
	n.t.Helper()
	var got string
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		if got = from.Ask("tcp", addr); got == want || want == "*" && got != "" {
			return
		}
		if want == "" {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	n.t.Errorf("%s: the server saw %q, want %q", what, got, want)
}

const hostPort = `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`

// TestKubeProxy runs the real kube-proxy on the plugin's node, in both of its modes: services and host ports both work,
// before and after either of the two makes its rules again.
func TestKubeProxy(t *testing.T) {
	program := filepath.Join(os.Getenv("BERTH_TOOLS"), "kube-proxy")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: BERTH_TOOLS names the directory that `make tools` filled", err)
	}
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			a, b := n.pod("a", hostPort), n.pod("b", "")
			if err := a.Serve("tcp", 80); err != nil {
				t.Fatal(err)
			}
			start := n.proxy(program, mode, a.ip)
			stop := start()
			const service = "10.96.0.10:80"
			both := func(when string) {
				t.Helper()
				n.expect(when+": a pod to the service, with its own address", b.Netns, service, b.ip)
				n.expect(when+": the pod to the service that it is", a.Netns, service, "*")
				n.expect(when+": the host to the service", n.Netns, service, "*")
				n.expect(when+": outside to the node port", n.Outside(), conform.HostIP+":30080", "*")
				n.expect(when+": outside to the host port", n.Outside(), conform.HostIP+":8080", conform.OutsideIP)
				n.expect(when+": localhost to the host port", n.Netns, "127.0.0.1:8080", "*")
			}
			both("at first")
			c := n.pod("c", "")
			n.call("DEL", "berth", "eth0", c, conf(""))
			n.call("CHECK", "berth", "eth0", a, conf(hostPort))
			both("after another pod came and went")
			stop()
			stop = start()
			both("after kube-proxy started again")
			stop()
			n.call("DEL", "berth", "eth0", a, conf(""))
			n.expect("after DEL", n.Outside(), conform.HostIP+":8080", "")
		})
	}
}

// proxy returns a function that starts kube-proxy, which returns one that stops it.
func (n *node) proxy(program, mode, endpoint string) func() func() {
	a := newAPI("node1", conform.HostIP, "10.96.0.10", endpoint)
	var addr string
	var stopAPI func()
	if err := n.Do(func() (err error) {
		addr, stopAPI, err = a.serve()
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(stopAPI)
	dir := n.t.TempDir()
	kubeconfig := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x","contexts":[{"name":"x","context":{"cluster":"x","user":"x"}}],
		"clusters":[{"name":"x","cluster":{"server":"http://%s"}}],"users":[{"name":"x","user":{}}]}`, addr)
	config := fmt.Sprintf(`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":%q,"clusterCIDR":"10.77.0.0/24",
		"hostnameOverride":"node1","clientConnection":{"kubeconfig":%q},"conntrack":{"maxPerCore":0},"bindAddress":"0.0.0.0",
		"iptables":{"minSyncPeriod":"100ms","syncPeriod":"1s"},"nftables":{"minSyncPeriod":"100ms","syncPeriod":"1s"}}`, mode, filepath.Join(dir, "kubeconfig"))
	for name, text := range map[string]string{"kubeconfig": kubeconfig, "config": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	return func() func() {
		cmd := exec.Command(program, "--config", filepath.Join(dir, "config"))
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := n.Do(cmd.Start); err != nil {
			n.t.Fatal(err)
		}
		return func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
			if n.t.Failed() {
				n.t.Logf("kube-proxy:\n%.6000s", log.String())
			}
		}
	}
}

// TestServiceMesh puts a plugin behind ours that redirects the pod's own traffic, as Istio's does: ours goes on, CHECK
// does not mind, and DEL leaves nothing.
func TestServiceMesh(t *testing.T) {
	n := newNode(t)
	a, b := n.pod("a", ""), n.pod("b", "")
	for _, line := range []string{
		"iptables -t nat -N ISTIO_REDIRECT",
		"iptables -t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
		"iptables -t nat -A OUTPUT -p tcp -m owner ! --uid-owner 1337 -j ISTIO_REDIRECT",
	} {
		if _, err := b.Sh(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Serve("tcp", 80); err != nil {
		t.Fatal(err)
	}
	if err := b.Serve("tcp", 15001); err != nil {
		t.Fatal(err)
	}
	n.expect("the pod to the other pod, redirected to its proxy", b.Netns, a.ip+":80", b.ip)
	n.expect("the host to the pod", n.Netns, a.ip+":80", "*")
	n.call("CHECK", "berth", "eth0", b, conf(""))
	for _, p := range []*pod{a, b} {
		n.call("DEL", "berth", "eth0", p, conf(""))
	}
	if out, err := n.Sh("ip -o link"); err != nil || strings.Contains(out, "bth") {
		t.Errorf("left: %s %v", out, err)
	}
}

// TestMultus attaches one pod to two networks as a meta-plugin does: the same container, two interfaces, each by its own
// plugin; taking off one leaves the other.
func TestMultus(t *testing.T) {
	n := newNode(t)
	p := n.pod("multi", "")
	second := `{"cniVersion":"1.0.0","name":"storage","type":"bridge","bridge":"br-storage","isGateway":true,
		"ipam":{"type":"host-local","subnet":"10.55.0.0/24"}}`
	ip := address(n.call("ADD", "bridge", "net1", p, second))
	if err := p.Serve("tcp", 80); err != nil {
		t.Fatal(err)
	}
	n.expect("by the first network", n.Netns, p.ip+":80", "*")
	n.expect("by the second network", n.Netns, ip+":80", "10.55.0.1")
	n.call("DEL", "bridge", "net1", p, second)
	n.expect("by the first network, after the second's DEL", n.Netns, p.ip+":80", "*")
	n.call("CHECK", "berth", "eth0", p, conf(""))
	n.call("DEL", "berth", "eth0", p, conf(""))
	if out, err := p.Sh("ip -o link"); err != nil || strings.Contains(out, "eth0") || strings.Contains(out, "net1") {
		t.Errorf("left in the pod: %s %v", out, err)
	}
}
