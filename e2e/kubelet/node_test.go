// Package kubelet tests Berth below a real kubelet: what a user of Kubernetes sees of probes, logs, restarts, stops
// and networks, and that neither the kubelet's restart nor the daemon's death is noticed by a container.
//
// One lab serves the package, in a network namespace of its own. Tests that disturb the node run first, one after
// another; the others run at once. At the end nothing may be left.
package kubelet

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/census"
	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/ocispecs"
)

const port = 11350

// busybox is the image of nearly every test: a shell, and what testbox adds.
const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// node is what the tests share.
var node struct {
	lab     *harness.Lab
	cri     *harness.Process
	kubelet *harness.Kubelet
	client  *harness.Client
}

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "32"); err != nil { // they wait more than they work
		panic(err)
	}
	lab, err := harness.FromEnv("kubelet")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Pods = "10.91.0.0/16"
	os.Exit(harness.Isolate(lab, func() int { return inLab(m, lab) }))
}

func inLab(m *testing.M, lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := harness.Stop(ctx, lab); err != nil { // what an interrupted run left
		fmt.Fprintln(os.Stderr, "leftovers:", err)
		return 1
	}
	before := census.Take(lab.Dir, lab.Run).Of("berth-" + lab.Name)
	code := 1
	if err := start(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
	} else {
		made := ocispecs.Start(filepath.Join(lab.Dir, "berth"))
		code = m.Run()
		if _, err := ocispecs.Check(made); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if code != 0 || os.Getenv("BERTH_KEEP") != "" {
		lab.KeepLogs(os.Stderr)
	}
	end, cancelEnd := context.WithTimeout(context.Background(), time.Minute)
	defer cancelEnd()
	if err := harness.Stop(end, lab); err != nil {
		fmt.Fprintln(os.Stderr, "stop:", err)
		code = 1
	}
	if left := settled(before, lab); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind:\n  %s\n", strings.Join(left, "\n  "))
		code = 1
	}
	return code
}

func settled(before census.Census, lab *harness.Lab) (left []string) {
	for range 60 {
		if left = before.Diff(census.Take(lab.Dir, lab.Run).Of("berth-" + lab.Name)); len(left) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return left
}

func start(ctx context.Context, lab *harness.Lab) error {
	node.lab = lab
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	var err error
	if node.cri, err = lab.StartCRI(ctx, harness.Options{Netd: true}); err != nil {
		return err
	}
	if node.client, err = harness.Dial(lab.Socket()); err != nil {
		return err
	}
	node.kubelet, err = lab.StartKubelet(ctx, lab.Socket(), port)
	return err
}

// pod is a pod under test.
type pod struct {
	t    *testing.T
	ctx  context.Context
	name string
}

// apply gives the kubelet a pod with this spec (YAML, indented as it comes) and has it deleted at the test's end,
// which fails the test if a container of it goes on.
func apply(t *testing.T, name, spec string) *pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	p := &pod{t: t, ctx: ctx, name: name}
	t.Cleanup(cancel)
	t.Cleanup(p.remove)
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: default}\nspec:\n" + indent(spec)
	if err := node.kubelet.Apply(name, manifest); err != nil {
		t.Fatal(err)
	}
	return p
}

func indent(s string) string {
	s = strings.ReplaceAll(strings.Trim(s, "\n"), "BUSYBOX", busybox+"\n  imagePullPolicy: IfNotPresent")
	return "  " + strings.ReplaceAll(s, "\n", "\n  ") + "\n"
}

func (p *pod) remove() {
	if err := node.kubelet.Delete(p.name); err != nil && !os.IsNotExist(err) {
		p.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	start := time.Now()
	defer func() { p.t.Logf("%6.2f s until the pod was gone", time.Since(start).Seconds()) }()
	err := harness.Until(ctx, 50*time.Millisecond, node.kubelet.Process, func() error {
		if _, err := node.kubelet.Pod(p.name); err == nil {
			return fmt.Errorf("the kubelet still has pod %s", p.name)
		}
		for _, c := range p.containers(p.t) {
			if c.GetState() == cri.ContainerState_CONTAINER_RUNNING {
				return fmt.Errorf("container %s still runs", c.GetMetadata().GetName())
			}
		}
		return nil
	})
	if err != nil {
		p.t.Error(err)
	}
}

// containers are the pod's as the runtime has them.
func (p *pod) containers(t *testing.T) []*cri.Container {
	t.Helper()
	list, err := node.client.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	if err != nil {
		t.Error(err)
	}
	var mine []*cri.Container
	for _, c := range list.GetContainers() {
		if strings.HasPrefix(c.GetLabels()["io.kubernetes.pod.name"], p.name+"-berth-") {
			mine = append(mine, c)
		}
	}
	return mine
}

// await waits until the kubelet shows the pod as ok wants it.
func (p *pod) await(what string, ok func(*harness.Pod) bool) *harness.Pod {
	p.t.Helper()
	start := time.Now()
	seen, err := node.kubelet.Await(p.ctx, p.name, ok)
	p.t.Logf("%6.2f s until %s", time.Since(start).Seconds(), what)
	if err != nil {
		p.t.Fatalf("waiting until %s: %v", what, err)
	}
	return seen
}

func (p *pod) ready() *harness.Pod {
	p.t.Helper()
	return p.await("the pod is ready", (*harness.Pod).Ready)
}

// status of a container, among the init containers too; the zero value if there is none yet.
func status(p *harness.Pod, name string) harness.ContainerStatus {
	for _, s := range append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	return harness.ContainerStatus{}
}

// logs are a container's, or the test's end.
func (p *pod) logs(seen *harness.Pod, container, query string) string {
	p.t.Helper()
	s, err := node.kubelet.Logs(seen, container, query)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}
