package netd

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-project/berth/e2e/netcluster"
)

func poolObject(name, mode string, cidrs ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "net.berth.dev/v1alpha1", "kind": "NetworkPool", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"cidrs": cidrs, "mode": mode},
	}}
}

// TestPools: nodes and pools are objects of the cluster; what is wrong of them is named and takes nothing else with it,
// and an API server that goes away takes nothing down.
func TestPools(t *testing.T) {
	c := newCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must(t, c.Apply(ctx, "../../cni/deploy/crds.yaml"))
	await(t, "the pool's definition", 10*time.Second, func() error { return c.Post(ctx, poolObject("default", "host-gw", netcluster.Pods)) })
	var pods []*netcluster.Pod
	for _, n := range c.Nodes {
		must(t, n.StartBerth(""))
	}
	for _, n := range c.Nodes {
		await(t, "berth-netd on "+n.Name, 20*time.Second, func() (err error) {
			p, err := n.BerthPod()
			if err != nil {
				return fmt.Errorf("%w\n%s", err, n.Agent.Tail(20))
			}
			pods = append(pods, p)
			return nil
		})
	}
	everyPod(t, "host-gw", pods)
	n1 := c.Nodes[0]
	routes := func(want string) func() error {
		return func() error {
			out, err := n1.Try("ip route show proto 184")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("%q is not in\n%s", want, out)
			}
			return err
		}
	}
	await(t, "routes of host-gw", time.Second, routes("10.244.2.0/24 via 192.0.2.2 dev eth0"))

	// A Node that is wrong is left out, and one that is good still comes.
	must(t, c.Create(ctx, netcluster.Object("wrong", "192.0.2.1", "10.244.77.0/24"))) // n1's address
	must(t, c.Create(ctx, netcluster.Object("good", "192.0.2.99", "10.244.99.0/24")))
	await(t, "a good Node beside a wrong one", 2*time.Second, routes("10.244.99.0/24"))
	await(t, "the wrong one is named", 2*time.Second, func() error {
		out, err := n1.Status()
		if err == nil && !strings.Contains(out, "LEFT OUT node wrong: address 192.0.2.1") {
			err = fmt.Errorf("status: %s", out)
		}
		return err
	})
	annotation := []byte(`{"metadata":{"annotations":{"net.berth.dev/mtu":"large"}}}`)
	_, err := c.Client.CoreV1().Nodes().Patch(ctx, "n2", types.MergePatchType, annotation, metav1.PatchOptions{})
	must(t, err)
	await(t, "a wrong annotation is named", 2*time.Second, func() error {
		out, err := n1.Status()
		if err == nil && !strings.Contains(out, "LEFT OUT node n2: annotation net.berth.dev/mtu") {
			err = fmt.Errorf("status: %s", out)
		}
		return err
	})
	must(t, routes("10.244.2.0/24 via 192.0.2.2")()) // what it was when it was right

	// The control plane is out of reach; an agent that starts without it has its snapshot.
	must(t, c.Cut())
	must(t, n1.StopAgent())
	must(t, n1.Run("ip route flush proto 184"))
	must(t, n1.StartBerth(""))
	await(t, "started without an API server", 2*time.Second, routes("10.244.2.0/24 via 192.0.2.2 dev eth0"))
	everyPod(t, "without an API server", pods)
	for _, p := range pods {
		must(t, p.Del())
	}
}
