// Package netd tests berth-netd in a cluster with a real control plane: pools as objects, and the move from flannel.
package netd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/netcluster"
)

var lab *harness.Lab

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if lab, err = harness.FromEnv("netd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(harness.Isolate(lab, func() int {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := harness.Stop(ctx, lab); err != nil { // what an interrupted run left
			fmt.Fprintln(os.Stderr, "leftovers:", err)
			return 1
		}
		code := m.Run()
		if err := errors.Join(os.RemoveAll(lab.Dir), os.RemoveAll(lab.Run)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		return code
	}))
}

func newCluster(t *testing.T, n int) *netcluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := netcluster.New(ctx, lab, n)
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), os.RemoveAll(lab.Dir)); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// await is for what comes by itself.
func await(t *testing.T, what string, d time.Duration, try func() error) {
	t.Helper()
	start := time.Now()
	if err := netcluster.Await(d, try); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%-55s %s", what, time.Since(start).Round(10*time.Millisecond))
}

func ping(from *netcluster.NS, to string) error {
	_, err := from.Try("ping -n -c 1 -W 1 " + to)
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// everyPod checks all pairs of pods that are not on the same node.
func everyPod(t *testing.T, when string, pods []*netcluster.Pod) {
	t.Helper()
	for _, a := range pods {
		for _, b := range pods {
			if a.Node == b.Node {
				continue
			}
			if err := netcluster.Await(5*time.Second, func() error { return ping(a.NS, b.IP) }); err != nil {
				for _, line := range []string{"ip route", "ip -d link", "bridge fdb show dev flannel.1", "ip neigh", "nft list ruleset"} {
					out, _ := a.Node.Try(line) //nolint:errcheck // for the message
					t.Log(a.Node.Name, line, "\n"+out)
				}
				t.Fatalf("%s: pod %s of %s → pod %s of %s: %v", when, a.IP, a.Node.Name, b.IP, b.Node.Name, err)
			}
		}
	}
}

// TestMoveFromFlannel: three nodes run flannel; one after the other it is replaced by berth-netd, while pods that flannel
// attached keep talking, and pods of both kinds reach each other.
func TestMoveFromFlannel(t *testing.T) {
	c := newCluster(t, 3)
	var pods []*netcluster.Pod
	for _, n := range c.Nodes {
		must(t, n.StartFlannel("vxlan"))
	}
	for _, n := range c.Nodes {
		await(t, "flannel of "+n.Name, 30*time.Second, func() (err error) {
			p, err := n.FlannelPod()
			if err == nil {
				pods = append(pods, p)
			}
			return err
		})
	}
	everyPod(t, "flannel everywhere", pods)
	watch := startTalk(t, pods)
	for i, n := range c.Nodes {
		must(t, n.StopAgent())
		must(t, n.StartBerth(fmt.Sprintf("  flannel: true\n  flannelNetwork: [%q]\n", netcluster.Pods)))
		await(t, "berth-netd in flannel's place on "+n.Name, 20*time.Second, func() (err error) {
			p, err := n.BerthPod()
			if err == nil {
				pods = append(pods, p)
			}
			return err
		})
		everyPod(t, fmt.Sprintf("%d of 3 nodes moved", i+1), pods)
		out, err := n.Try("ip -d link show flannel.1")
		must(t, err)
		if !strings.Contains(out, "alias berth-netd") {
			t.Errorf("the device was not taken over:\n%s", out)
		}
	}
	lost, sent := watch.end()
	t.Logf("%d of %d pings between pods were lost during the move", lost, sent)
	if lost > 0 {
		t.Errorf("%d of %d pings were lost", lost, sent)
	}
	for _, n := range c.Nodes {
		out, err := n.Try("ip route show dev flannel.1")
		must(t, err)
		if strings.Count(out, "proto 184") != 2 || strings.Count(out, "\n") != 2 {
			t.Errorf("routes of %s:\n%s", n.Name, out)
		}
	}
	// A node that flannel still serves, and joins now, is reached by all.
	must(t, c.Nodes[2].StopAgent())
	must(t, c.Nodes[2].StartFlannel("vxlan"))
	everyPod(t, "flannel again on n3", pods)
	for _, p := range pods {
		must(t, p.Del())
	}
}
