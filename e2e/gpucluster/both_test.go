package gpucluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func one() *resource.Quantity { return resource.NewQuantity(1, resource.DecimalSI) }

// nodes lists the GPUs of a container, "nvidia3", and nothing else of the driver.
func (x *test) nodes(id string) []string {
	return strings.Fields(x.sh(id, "cd /dev && ls -d nvidia[0-9]*"))
}

// TestClaim: the scheduler allocates a claim, the kubelet has it prepared, the container has that GPU by CDI and no
// other; with the pod the claim goes, and the GPU is free.
func TestClaim(t *testing.T) {
	x := begin(t, "claim")
	x.pod("one", true)
	id := x.run("one")
	claims, err := node.cluster.Client.ResourceV1().ResourceClaims(x.ns).List(x.ctx, metav1.ListOptions{})
	x.ok(err)
	if len(claims.Items) != 1 || claims.Items[0].Status.Allocation == nil {
		x.Fatalf("claims: %+v", claims.Items)
	}
	device := claims.Items[0].Status.Allocation.Devices.Results[0].Device
	s, want := status(x), ""
	for _, g := range s.GPUs {
		if strings.EqualFold(g.UUID, device) {
			want = fmt.Sprintf("nvidia%d", g.Minor)
		}
	}
	if got := x.nodes(id); !slices.Equal(got, []string{want}) {
		t.Errorf("the container has %v, the claim %s (%s)", got, want, device)
	}
	if got := s.Claims[string(claims.Items[0].UID)]; len(got) != 1 || !strings.EqualFold(got[0], device) {
		t.Errorf("the ledger: %v", s.Claims)
	}
	for minor := range gpus {
		said := x.sh(id, fmt.Sprintf("rm -f /tmp/n; mknod /tmp/n c 195 %d && (: </tmp/n) 2>&1 | sed 's/.*: //'", minor))
		if mine := want == fmt.Sprintf("nvidia%d", minor); (said == "Operation not permitted") == mine {
			t.Errorf("195:%d, given: %v, opens with %q", minor, mine, said)
		}
	}
	x.await("the device plugin to offer one less", func() error { return allocatable(x.ctx, "nvidia.com/gpu", gpus-1) })
	now := int64(0)
	x.ok(node.cluster.Client.CoreV1().Pods(x.ns).Delete(x.ctx, "one", metav1.DeleteOptions{GracePeriodSeconds: &now}))
	x.await("the claim to be gone", func() error {
		claims, err := node.cluster.Client.ResourceV1().ResourceClaims(x.ns).List(x.ctx, metav1.ListOptions{})
		if err == nil && len(claims.Items) > 0 {
			err = errors.New("it is there")
		}
		return err
	})
}

// TestBothWays asks for more than twice the GPUs that there are, by the device plugin and by claims, at once: each GPU
// ends in one container, whoever was first, and never in two.
func TestBothWays(t *testing.T) {
	x := begin(t, "both")
	for i := range 3 {
		x.pod(fmt.Sprintf("plugin-%d", i), false)
		x.run(fmt.Sprintf("plugin-%d", i))
	}
	for i := range gpus {
		x.pod(fmt.Sprintf("claim-%d", i), true)
	}
	x.await("the first claim's pod", func() error { // a claim takes the scheduler longer
		if len(x.running()) == 3 {
			return errors.New("none runs")
		}
		return nil
	})
	for i := range gpus {
		x.pod(fmt.Sprintf("plugin-%d", i+3), false)
	}
	owner := map[string]string{}
	unique := func() {
		for name, id := range x.running() {
			for _, gpu := range x.nodes(id) {
				if o := owner[gpu]; o != "" && o != name {
					t.Fatalf("%s is %s's and %s's", gpu, o, name)
				}
				owner[gpu] = name
			}
		}
	}
	x.await("every GPU to be used", func() error {
		unique()
		if len(owner) < gpus {
			return fmt.Errorf("%d are: %v", len(owner), owner)
		}
		return nil
	})
	ways := map[string]int{}
	for _, name := range owner {
		way, _, _ := strings.Cut(name, "-")
		ways[way]++
	}
	t.Logf("%d GPUs, %d asked: %d by the device plugin, %d by claims, 0 twice", gpus, 2*gpus+3, ways["plugin"], ways["claim"])
	if ways["plugin"] < 3 || ways["claim"] < 1 {
		t.Errorf("one way had all: %v", ways)
	}
	s := status(x)
	held := 0
	for _, uuids := range s.Claims {
		held += len(uuids)
	}
	if held != ways["claim"] || len(s.Given) != ways["plugin"] {
		t.Errorf("the ledger has claims %v and given %v", s.Claims, s.Given)
	}
}

// TestFull: when all GPUs are one way's, a pod of the other waits, and runs as soon as one is free.
func TestFull(t *testing.T) {
	x := begin(t, "full")
	for i := range gpus {
		x.pod(fmt.Sprintf("claim-%d", i), true)
	}
	for i := range gpus {
		x.run(fmt.Sprintf("claim-%d", i))
	}
	x.await("none to be left", func() error { return allocatable(x.ctx, "nvidia.com/gpu", 0) })
	x.pod("plugin", false)
	x.await("the scheduler to refuse it", func() error {
		p, err := node.cluster.Client.CoreV1().Pods(x.ns).Get(x.ctx, "plugin", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && strings.Contains(c.Message, "Insufficient nvidia.com/gpu") {
				return nil
			}
		}
		return fmt.Errorf("%v", p.Status.Conditions)
	})
	now := int64(0)
	x.ok(node.cluster.Client.CoreV1().Pods(x.ns).Delete(x.ctx, "claim-3", metav1.DeleteOptions{GracePeriodSeconds: &now}))
	x.run("plugin")
}
