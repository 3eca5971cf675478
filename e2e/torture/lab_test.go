// Package torture kills the daemon and its supervisors at random under load, and at every failpoint, and holds what
// the clients see and what is left on the node against what they did. It speaks the CRI itself, as a kubelet does.
//
// `go test` kills a few times; BERTH_TORTURE=1 (`make torture`) kills the daemon 500 times and a shim 200 times, and takes
// 10,000 steps with the model.
package torture

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/census"
	"github.com/berth-project/berth/e2e/harness"
	"github.com/berth-project/berth/e2e/killpoint"
)

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// node is the lab that all tests of the package use, one after another.
var node *machine

func TestMain(m *testing.M) {
	killpoint.Child()
	flag.Parse()
	lab, err := harness.FromEnv("torture")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Pods = "10.92.0.0/16"
	os.Exit(harness.Isolate(lab, func() int { return inLab(m, lab) }))
}

func inLab(m *testing.M, lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := harness.Stop(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "leftovers of an earlier run:", err)
		return 1
	}
	before := census.Take(lab.Dir, lab.Run).Of("berth-" + lab.Name)
	code := 1
	var err error
	if node, err = newMachine(ctx, lab); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
	} else {
		code = m.Run()
		if err := total.write(); err != nil {
			fmt.Fprintln(os.Stderr, "torture.json:", err)
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
	if left := before.Diff(census.Take(lab.Dir, lab.Run).Of("berth-" + lab.Name)); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind:\n  %s\n", strings.Join(left, "\n  "))
		code = 1
	}
	return code
}

// machine is a node whose daemon is killed and started again.
type machine struct {
	lab      *harness.Lab
	client   *harness.Client
	conf     string
	baseline census.Census // with the daemon, idle, after one pod's life
	fds      map[string]int

	mu     sync.Mutex
	daemon *harness.Process
}

func newMachine(ctx context.Context, lab *harness.Lab) (*machine, error) {
	n := &machine{lab: lab}
	if _, err := lab.StartRegistry(ctx); err != nil {
		return nil, err
	}
	var err error
	if n.client, err = harness.Dial(lab.Socket()); err != nil {
		return nil, err
	}
	if n.conf, err = lab.WriteConfig(harness.Options{}); err != nil {
		return nil, err
	}
	if _, err = n.start(ctx, nil); err != nil {
		return nil, err
	}
	if _, err = n.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		return nil, err
	}
	if err := lives(ctx, n, 1); err != nil {
		return nil, fmt.Errorf("the first pod's life: %w", err)
	}
	if err := n.restart(ctx); err != nil { // what a daemon has open differs a little before its first recovery
		return nil, err
	}
	if err := lives(ctx, n, 1); err != nil {
		return nil, err
	}
	time.Sleep(500 * time.Millisecond)
	n.baseline, n.fds = n.census(), n.descriptors()
	return n, nil
}

// start runs the daemon and returns how long it took until the first good answer.
func (n *machine) start(ctx context.Context, env []string) (time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	begin := time.Now()
	p, err := harness.Start(n.lab.Logs(), "berth-cri", env, filepath.Join(n.lab.Bin, "berth-cri"), "--config", n.conf)
	if err != nil {
		return 0, err
	}
	n.daemon = p
	c, err := harness.Dial(n.lab.Socket())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	err = harness.Until(ctx, 2*time.Millisecond, p, func() error {
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if _, err := c.Runtime.Version(call, &cri.VersionRequest{}); err != nil {
			return err
		}
		st, err := c.Runtime.Status(call, &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, cond := range st.GetStatus().GetConditions() {
			if !cond.GetStatus() {
				return fmt.Errorf("%s is false: %s", cond.GetType(), cond.GetMessage())
			}
		}
		return nil
	})
	return time.Since(begin), err
}

func (n *machine) process() *harness.Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.daemon
}

func (n *machine) restart(ctx context.Context) error {
	if err := n.process().Stop(); err != nil {
		return err
	}
	_, err := n.start(ctx, nil)
	return err
}

// census leaves out what a daemon may keep: its shims, their directories and groups, logs.
func (n *machine) census() census.Census {
	session := fmt.Sprintf("/images/tmp/%d-", n.process().Pid()) // of this daemon's pulls; those of earlier ones must go
	c := census.Take(n.lab.Dir, n.lab.Run).Of("berth-" + n.lab.Name)
	for kind, all := range c {
		for name := range all {
			if strings.Contains(name, "/shims/") || strings.Contains(name, n.lab.ShimPrefix()) || strings.Contains(name, "/logs/") || strings.Contains(name, session) ||
				kind == "process" && strings.Contains(name, "/berth-cri ") {
				delete(all, name)
			}
		}
	}
	return c
}

// shims are the pids of the lab's supervisors. A child between fork and exec has its supervisor's name, and is none.
func (n *machine) shims() (pids []int) {
	all, err := harness.CgroupPids(n.lab.Group())
	if err != nil {
		return nil
	}
	supervisors := map[int]bool{}
	for _, pid := range all {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "berth-shim\n" {
			supervisors[pid] = true
		}
	}
	for pid := range supervisors {
		if parent, err := harness.Parent(pid); err == nil && !supervisors[parent] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// descriptors counts what the daemon and the shims have open, by sort: the most of any shim.
func (n *machine) descriptors() map[string]int {
	count := func(pid int) map[string]int {
		m := map[string]int{}
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, f := range fds {
			if to, err := os.Readlink(f); err == nil {
				if strings.HasPrefix(filepath.Base(to), "cpu.") { // Go's runtime looks at the limits of where it started
					continue
				}
				sort, _, _ := strings.Cut(to, ":")
				switch shims := filepath.Join(n.lab.Run, "berth", "shims") + "/"; {
				case strings.HasPrefix(sort, "/sys/fs/cgroup/"):
					sort = "a cgroup"
				case strings.HasPrefix(sort, shims): // one that died empty is followed by one of another name
					sort = "shims/*/" + filepath.Base(sort)
				}
				m[sort]++
			}
		}
		return m
	}
	all := map[string]int{}
	for sort, c := range count(n.process().Pid()) {
		if sort == "socket" || strings.HasPrefix(sort, "anon_inode") {
			continue // idle connections of clients and shims come and go
		}
		all["berth-cri "+sort] = c
	}
	for _, pid := range n.shims() {
		for sort, c := range count(pid) {
			all["berth-shim "+sort] = max(all["berth-shim "+sort], c)
		}
	}
	return all
}

// clean fails the test unless the node is as it was before all pods.
func (n *machine) clean(t *testing.T) {
	t.Helper()
	if left := n.leftovers(); len(left) > 0 {
		total.add(leaks, len(left))
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
}

// leftovers are what is on the node and was not before all pods. It may take a moment: namespaces die late.
func (n *machine) leftovers() (left []string) {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = n.baseline.Diff(n.census())
		for sort, c := range n.descriptors() {
			if was := n.fds[sort]; c > was {
				left = append(left, fmt.Sprintf("%d descriptors of %s, were %d", c, sort, was))
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
	return left
}
