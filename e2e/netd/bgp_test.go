package netd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/netcluster"
)

// birdConf is a router of AS 65000 that speaks with whoever of AS 64512 is on its network, and announces a default route
// and an office's network.
const birdConf = `
router id 192.0.2.200;
protocol device {}
protocol static { ipv4; route 0.0.0.0/0 blackhole; route 198.51.100.0/24 blackhole; }
protocol bgp nodes {
  local 192.0.2.200 as 65000;
  neighbor range 192.0.2.0/24 as 64512;
  dynamic name "node";
  ipv4 { import all; export where source = RTS_STATIC; };
}
`

// router is BIRD on the cluster's switch.
type router struct {
	*netcluster.NS
	dir     string
	process *harness.Process
}

func startRouter(t *testing.T, c *netcluster.Cluster) *router {
	t.Helper()
	ns, err := c.Plug("192.0.2.200")
	must(t, err)
	r := &router{NS: ns, dir: t.TempDir()}
	must(t, os.WriteFile(filepath.Join(r.dir, "bird.conf"), []byte(birdConf), 0o600))
	must(t, r.Do(func() (err error) {
		r.process, err = harness.Start(lab.Logs(), "bird", nil, "/usr/sbin/bird", "-f", "-c", filepath.Join(r.dir, "bird.conf"),
			"-s", filepath.Join(r.dir, "ctl"), "-P", filepath.Join(r.dir, "pid"))
		return err
	}))
	t.Cleanup(func() {
		if err := errors.Join(r.process.Stop(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// has is an error until exactly these nodes, by address, are the router's next hops for the prefix.
func (r *router) has(prefix string, nodes ...string) func() error {
	return func() error {
		out, err := r.Try("/usr/sbin/birdc -s " + filepath.Join(r.dir, "ctl") + " show route all for " + prefix)
		var got []string
		for line := range strings.Lines(out) {
			if _, hop, ok := strings.Cut(line, "BGP.next_hop: "); ok {
				got = append(got, strings.TrimSpace(hop))
			}
		}
		slices.Sort(got)
		got = slices.Compact(got)
		if !strings.Contains(out, prefix) {
			got = nil // a wider one was shown
		}
		if !slices.Equal(got, nodes) {
			return errors.Join(err, fmt.Errorf("%s comes from %v, want %v:\n%s", prefix, got, nodes, out))
		}
		return nil
	}
}

func peerObject(spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "net.berth.dev/v1alpha1", "kind": "BGPPeer", "metadata": map[string]any{"name": "rack"}, "spec": spec,
	}}
}

// serve makes a Service with an address of its own and one endpoint on a node.
func serve(ctx context.Context, t *testing.T, c *netcluster.Cluster, name, ip, node string, policy corev1.ServiceExternalTrafficPolicy) {
	t.Helper()
	_, err := c.Client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ExternalTrafficPolicy: policy, ExternalIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	ready := true
	_, err = c.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.9"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}, metav1.CreateOptions{})
	must(t, err)
}

// TestBGP: a pool of mode bgp, a router outside as an object, services told where they are served, and filters.
func TestBGP(t *testing.T) {
	c := newCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must(t, c.Apply(ctx, "../../cni/deploy/crds.yaml"))
	await(t, "the pool's definition", 10*time.Second, func() error { return c.Post(ctx, poolObject("default", "bgp", netcluster.Pods)) })
	await(t, "the peer's definition", 10*time.Second, func() error {
		return c.Post(ctx, peerObject(map[string]any{
			"address": "192.0.2.200", "asn": int64(65000), "nodeLabels": map[string]any{"rack": "a"},
			"import": []any{map[string]any{"action": "accept", "prefixes": []any{map[string]any{"cidr": "198.51.100.0/24"}}}},
			"export": []any{map[string]any{"action": "accept", "prefixes": []any{map[string]any{"cidr": "10.244.0.0/14"}}, "addCommunities": []any{"64512:7", "64512:1:2"}}},
		}))
	})
	r := startRouter(t, c)
	label := func(node, patch string) {
		_, err := c.Client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(`{"metadata":{"labels":`+patch+`}}`), metav1.PatchOptions{})
		must(t, err)
	}
	label("n1", `{"rack":"a"}`)
	label("n2", `{"rack":"a"}`)
	var pods []*netcluster.Pod
	for _, n := range c.Nodes {
		must(t, n.StartBerth("  serviceRanges: [203.0.113.0/24]\n  topology: reflectors\n  reflectors: {rack: a}\n"))
	}
	for _, n := range c.Nodes {
		await(t, "berth-netd on "+n.Name, 20*time.Second, func() (err error) {
			p, err := n.BerthPod()
			if err == nil {
				pods = append(pods, p)
			}
			return err
		})
	}
	everyPod(t, "bgp", pods)
	await(t, "the router prefers the node itself", 10*time.Second, func() error {
		out, err := r.Try("/usr/sbin/birdc -s " + filepath.Join(r.dir, "ctl") + " show route primary for 10.244.2.0/24")
		if err == nil && !strings.Contains(out, "via 192.0.2.2 ") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	out, err := r.Try("/usr/sbin/birdc -s " + filepath.Join(r.dir, "ctl") + " show route all for 10.244.1.0/24")
	if err != nil || !strings.Contains(out, "(64512,7)") || !strings.Contains(out, "(64512, 1, 2)") {
		t.Errorf("communities: %v\n%s", err, out)
	}
	n1 := c.Nodes[0]
	await(t, "the office, which a rule lets in, and no default route", 10*time.Second, func() error {
		out, err := n1.Try("ip route show proto 184")
		if err == nil && (!strings.Contains(out, "198.51.100.0/24 via 192.0.2.200") || strings.Contains(out, "default")) {
			err = fmt.Errorf("routes of n1:\n%s", out)
		}
		return err
	})

	// Services: told by all, by the node that has it, by none when nothing serves; never what is out of range.
	serve(ctx, t, c, "all", "203.0.113.10", "n1", corev1.ServiceExternalTrafficPolicyCluster)
	serve(ctx, t, c, "local", "203.0.113.11", "n2", corev1.ServiceExternalTrafficPolicyLocal)
	serve(ctx, t, c, "theirs", "8.8.8.8", "n1", corev1.ServiceExternalTrafficPolicyCluster)
	await(t, "a service of all nodes", 10*time.Second, r.has("203.0.113.10/32", "192.0.2.1", "192.0.2.2"))
	await(t, "a service of its node", 10*time.Second, r.has("203.0.113.11/32", "192.0.2.2"))
	must(t, r.has("8.8.8.8/32")())
	if out, err := n1.Try("ip route show"); err != nil || strings.Contains(out, "203.0.113.") {
		t.Errorf("a service has a route on a node: %v\n%s", err, out)
	}
	label("n1", `{"node.kubernetes.io/exclude-from-external-load-balancers":""}`)
	await(t, "a node that is excluded", 10*time.Second, r.has("203.0.113.10/32", "192.0.2.2"))
	must(t, c.Client.DiscoveryV1().EndpointSlices("default").Delete(ctx, "all", metav1.DeleteOptions{}))
	await(t, "a service without endpoints", 10*time.Second, r.has("203.0.113.10/32"))

	// The peer goes; a wrong one is named and costs nothing else.
	must(t, c.Remove(ctx, peerObject(nil)))
	await(t, "the session ends with its object", 10*time.Second, r.has("10.244.1.0/24"))
	must(t, c.Post(ctx, peerObject(map[string]any{
		"address": "192.0.2.200", "asn": int64(65000), "import": []any{map[string]any{"action": "accept", "communities": []any{"a:b"}}},
	})))
	await(t, "a wrong peer is named", 10*time.Second, func() error {
		out, err := n1.Status()
		if err == nil && !strings.Contains(out, `(rack): import[0].communities: community "a:b"`) {
			err = fmt.Errorf("status: %s", out)
		}
		return err
	})
	everyPod(t, "in the end", pods)
	for _, p := range pods {
		must(t, p.Del())
	}
}
