package netcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth/e2e/harness"
)

func (n *Node) file(name string) string { return filepath.Join(n.Dir, name) }

// run starts an agent in the node.
func (n *Node) run(name string, env []string, argv ...string) error {
	return n.Do(func() (err error) {
		n.serial++
		n.Agent, err = harness.Start(n.cluster.lab.Logs(), fmt.Sprintf("%s-%s-%d", name, n.Name, n.serial), env, argv...)
		return err
	})
}

func (n *Node) kubeconfig() (string, error) {
	return n.cluster.Kubeconfig("admin", n.cluster.Token("admin"))
}

// StartBerth runs berth-netd; more are further lines of its configuration's kubernetes mapping, each with two spaces.
func (n *Node) StartBerth(more string) error {
	kc, err := n.kubeconfig()
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`node: %s
fabric: ""
state: %q
root: %q
cni:
  dir: %q
  stateDir: %q
  importHostLocal: [%q]
bgp:
  program: %q
kubernetes:
  enabled: true
  kubeconfig: %q
%s`, n.Name, n.file("run"), n.file("lib"), n.file("net.d"), n.file("cni"), n.Leases(), filepath.Join(n.cluster.lab.Bin, "berth-bgp"), kc, more)
	if err := errors.Join(os.MkdirAll(n.Leases(), 0o755), os.WriteFile(n.file("netd.yaml"), []byte(conf), 0o600)); err != nil {
		return err
	}
	return n.run("berth-netd", nil, filepath.Join(n.cluster.lab.Bin, "berth-netd"), "--config", n.file("netd.yaml"), "serve")
}

// Leases is where flannel's host-local keeps the node's addresses.
func (n *Node) Leases() string { return n.file("leases/cbr0") }

// StartFlannel runs flannel with a backend: vxlan or host-gw.
func (n *Node) StartFlannel(backend string) error {
	kc, err := n.kubeconfig()
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`{"Network": %q, "EnableNFTables": false, "Backend": {"Type": %q}}`, Pods, backend)
	if err := os.WriteFile(n.file("net-conf.json"), []byte(conf), 0o600); err != nil {
		return err
	}
	return n.run("flannel", []string{"NODE_NAME=" + n.Name}, filepath.Join(n.cluster.lab.Tool, "flanneld"), "--kube-subnet-mgr",
		"--kubeconfig-file", kc, "--net-config-path", n.file("net-conf.json"), "--subnet-file", n.file("subnet.env"), "--iface", "eth0", "--ip-masq=false")
}

// Routes is an error until the main table has so many routes to blocks.
func (n *Node) Routes(want int) error {
	out, err := n.Try("ip route show")
	if err != nil {
		return err
	}
	if got := strings.Count(out, "10.244.") + strings.Count(out, "10.245.") + strings.Count(out, "10.246.") + strings.Count(out, "10.247."); got < want {
		return fmt.Errorf("node %s has %d routes of %d:\n%s", n.Name, got, want, tail(n.Agent))
	}
	return nil
}

func tail(p *harness.Process) string {
	if p == nil {
		return ""
	}
	return p.Tail(5)
}

// Pod is an attached namespace.
type Pod struct {
	*NS
	Node *Node
	IP   string
	del  func() error
}

// Del detaches it.
func (p *Pod) Del() error { return errors.Join(p.del(), p.Close()) }

// FlannelPod attaches a pod as flannel's CNI plugin does: bridge and host-local, with what flannel wrote for the node.
func (n *Node) FlannelPod() (*Pod, error) {
	b, err := os.ReadFile(n.file("subnet.env"))
	if err != nil {
		return nil, err
	}
	mtu := "1450"
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "FLANNEL_MTU="); ok {
			mtu = v
		}
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"cbr0","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,"mtu":%s,
	"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}}`, mtu, filepath.Dir(n.Leases()), n.Block)
	return n.attach(filepath.Join(n.cluster.lab.Tool, "bridge"), conf, "default")
}

// BerthPod attaches a pod of the default namespace with the configuration that berth-netd wrote.
func (n *Node) BerthPod() (*Pod, error) { return n.BerthPodOf("default") }

// BerthPodOf attaches one of a namespace.
func (n *Node) BerthPodOf(namespace string) (*Pod, error) {
	b, err := os.ReadFile(n.file("net.d/10-berth.conflist"))
	if err != nil {
		return nil, err
	}
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	return n.attach(filepath.Join(n.cluster.lab.Bin, "plugins", "berth"), string(text), namespace)
}

// Status is what the node's berth-netd says of itself.
func (n *Node) Status() (string, error) {
	return n.Try(filepath.Join(n.cluster.lab.Bin, "berth-netd") + " --config " + n.file("netd.yaml") + " status")
}
