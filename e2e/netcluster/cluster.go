package netcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/e2e/harness"
)

// api is where the control plane listens, in its own namespace and, forwarded, in every node's.
const api = "127.0.0.1:6443"

// Pods is the pod network; node i has its i-th /24.
const Pods = "10.244.0.0/14"

// Cluster is a control plane and nodes.
type Cluster struct {
	*harness.Cluster
	lab   *harness.Lab
	hub   *NS
	Nodes []*Node
	ports int

	wg        sync.WaitGroup
	listeners []net.Listener
}

// Node is one machine: a namespace, an address on the switch, a Node object with a block.
type Node struct {
	*NS
	Name, IP, Block string
	Dir             string
	// Agent is the network agent that runs.
	Agent   *harness.Process
	cluster *Cluster
	serial  int
}

// New starts a control plane and makes n nodes. The caller closes it, also after an error.
func New(ctx context.Context, lab *harness.Lab, n int) (*Cluster, error) {
	c := &Cluster{lab: lab}
	var err error
	if c.Cluster, err = lab.StartCluster(ctx); err != nil {
		return c, err
	}
	if c.hub, err = NewNS(); err != nil {
		return c, err
	}
	if err := c.hub.Run("ip link add br0 type bridge mcast_snooping 0", "ip link set br0 up"); err != nil {
		return c, err
	}
	for i := 1; i <= n; i++ {
		if err := c.addNode(ctx, i); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Object is the Node object of a node.
func Object(name, ip, block string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}},
		Spec:       corev1.NodeSpec{PodCIDR: block, PodCIDRs: []string{block}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}},
	}
}

func (c *Cluster) addNode(ctx context.Context, i int) error {
	n := &Node{Name: fmt.Sprintf("n%d", i), IP: fmt.Sprintf("192.0.2.%d", i), Block: fmt.Sprintf("10.244.%d.0/24", i), cluster: c}
	n.Dir = filepath.Join(c.lab.Dir, n.Name)
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if n.NS, err = c.Plug(n.IP); err != nil {
		return err
	}
	c.Nodes = append(c.Nodes, n)
	if err := errors.Join(n.Run("ip route add default via 192.0.2.254"), n.Sysctl("ipv4/ip_forward", "1")); err != nil {
		return err
	}
	if err := c.forward(n); err != nil {
		return err
	}
	return c.Create(ctx, Object(n.Name, n.IP, n.Block))
}

// Plug makes a machine that is no node: a namespace with an address on the switch. The caller closes it.
func (c *Cluster) Plug(ip string) (*NS, error) {
	ns, err := NewNS()
	if err != nil {
		return nil, err
	}
	c.ports++
	port := fmt.Sprintf("p%d", c.ports)
	return ns, errors.Join(
		ns.Run("ip link add eth0 type veth peer name "+port+" netns "+c.hub.Path()),
		c.hub.Run("ip link set "+port+" master br0", "ip link set "+port+" up"),
		ns.Run("ip addr add "+ip+"/24 dev eth0", "ip link set eth0 up"),
	)
}

// Create makes a Node object with its status.
func (c *Cluster) Create(ctx context.Context, o *corev1.Node) error {
	if _, err := c.Client.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{}); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"status": o.Status})
	if err != nil {
		return err
	}
	_, err = c.Client.CoreV1().Nodes().Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// forward lets the node reach the API server, on its own loopback: the control plane is on ours.
func (c *Cluster) forward(n *Node) error {
	var l net.Listener
	if err := n.Do(func() (err error) { l, err = net.Listen("tcp", api); return err }); err != nil {
		return err
	}
	c.listeners = append(c.listeners, l)
	c.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", api)
			if err != nil {
				_ = in.Close()
				continue
			}
			pipe := func(a, b net.Conn) { _, _ = io.Copy(a, b); _ = a.Close(); _ = b.Close() }
			go pipe(in, out)
			go pipe(out, in)
		}
	})
	return nil
}

// Cut takes the API server out of the nodes' reach: new connections are refused.
func (c *Cluster) Cut() error {
	var all []error
	for _, l := range c.listeners {
		all = append(all, l.Close())
	}
	c.listeners = nil
	return errors.Join(all...)
}

// Close ends agents and control plane.
func (c *Cluster) Close() error {
	var all []error
	for _, n := range c.Nodes {
		all = append(all, n.StopAgent())
	}
	all = append(all, c.Cut())
	c.wg.Wait()
	if c.Cluster != nil {
		all = append(all, c.Stop())
	}
	for _, n := range c.Nodes {
		all = append(all, n.Close())
	}
	if c.hub != nil {
		all = append(all, c.hub.Close())
	}
	return errors.Join(all...)
}

// StopAgent ends the node's agent, if one runs.
func (n *Node) StopAgent() error {
	if n.Agent == nil {
		return nil
	}
	p := n.Agent
	n.Agent = nil
	return p.Stop()
}

// Await calls try every 20 ms until it succeeds, for at most d, or five times that where BERTH_TORTURE does not ask for
// promised times: other tests' programs may be at work.
func Await(d time.Duration, try func() error) error {
	if os.Getenv("BERTH_TORTURE") == "" {
		d *= 5
	}
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil || time.Since(start) > d {
			return err
		}
	}
}
