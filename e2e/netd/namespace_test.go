package netd

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-project/berth/e2e/netcluster"
)

// TestNamespacePool: pods of a namespace have their addresses from its own pool, of which each node takes a block, and
// talk to all others; a block goes with its node.
func TestNamespacePool(t *testing.T) {
	c := newCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must(t, c.Apply(ctx, "../../cni/deploy/crds.yaml"))
	await(t, "the pool's definition", 10*time.Second, func() error { return c.Post(ctx, poolObject("default", "vxlan", netcluster.Pods)) })
	team := poolObject("team", "host-gw", "172.30.0.0/24")
	team.Object["spec"].(map[string]any)["namespaces"] = []any{"team-a"}
	must(t, c.Post(ctx, team))
	var pods []*netcluster.Pod
	for _, n := range c.Nodes {
		must(t, n.StartBerth(""))
	}
	blocks := func() (out []string, err error) {
		var list struct {
			Items []struct {
				Spec struct{ Node, CIDR string } `json:"spec"`
			} `json:"items"`
		}
		err = c.List(ctx, "net.berth.dev/v1alpha1", "networkblocks", &list)
		for _, b := range list.Items {
			out = append(out, b.Spec.Node+" "+b.Spec.CIDR)
		}
		return out, err
	}
	await(t, "a block for each node", 20*time.Second, func() error {
		all, err := blocks()
		if err == nil && len(all) != 3 {
			err = fmt.Errorf("blocks %v", all)
		}
		return err
	})
	for _, n := range c.Nodes {
		for namespace, prefix := range map[string]string{"team-a": "172.30.0.", "default": "10.244."} {
			await(t, "a pod of "+namespace+" on "+n.Name, 20*time.Second, func() (err error) {
				p, err := n.BerthPodOf(namespace)
				if err != nil {
					return err
				}
				if !strings.HasPrefix(p.IP, prefix) {
					t.Fatalf("a pod of %s got %s; %v", namespace, p.IP, p.Del())
				}
				pods = append(pods, p)
				return nil
			})
		}
	}
	everyPod(t, "of both pools", pods)
	n1 := c.Nodes[0]
	if out, err := n1.Try("ip route show proto 184"); err != nil || strings.Count(out, "via 192.0.2.") != 2 || strings.Count(out, "dev berth.vx4") != 2 {
		t.Errorf("routes of two modes: %v\n%s", err, out)
	}
	must(t, c.Client.CoreV1().Nodes().Delete(ctx, "n3", metav1.DeleteOptions{}))
	await(t, "the block goes with its node", 30*time.Second, func() error {
		all, err := blocks()
		if err == nil && len(all) != 2 {
			err = fmt.Errorf("blocks %v", all)
		}
		return err
	})
	for _, p := range pods {
		must(t, p.Del())
	}
}
