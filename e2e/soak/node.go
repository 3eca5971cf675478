package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/census"
	"github.com/berth-project/berth/e2e/harness"
)

// image is what every pod runs: a static busybox and a dynamic shell. another is pulled and removed in between.
const (
	image   = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	another = "gcr.io/k8s-staging-cri-tools/test-image-2:latest"
)

// upgraded are the programs that an upgrade replaces.
func upgraded() []string { return []string{"berth-cri", "berth-shim", "berth-netd"} }

// node is what is soaked.
type node struct {
	Config
	lab    *harness.Lab
	client *harness.Client
	conf   string // berth-cri's
	agent  []string
	tally  *tally
	begin  time.Time // of the load

	daemon, netd program
	life         atomic.Int32  // how many daemons there were before this one
	ranges       atomic.Uint32 // of ids, given so far
}

// newNode installs the programs, starts them and lets two pods live, so that what a node has once in its life is there.
func newNode(ctx context.Context, c Config) (*node, error) {
	lab := harness.NewLab("soak", filepath.Join(Dirs()[0], "bin"), c.Tools)
	n := &node{Config: c, lab: lab, tally: newTally()}
	if err := n.install(c.Bin, append(upgraded(), "registry", "testbox", "cni/berth")...); err != nil {
		return n, err
	}
	if err := errors.Join(harness.MakeCgroup(lab.Own), harness.MakeCgroup(lab.PodGroup(""))); err != nil {
		return n, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if _, err := lab.StartRegistry(ctx); err != nil {
		return n, err
	}
	var err error
	if n.agent, err = lab.NetdCommand(); err != nil {
		return n, err
	}
	if n.conf, err = lab.WriteConfig(harness.Options{Netd: true, LogLevel: "warn"}); err != nil {
		return n, err
	}
	if n.client, err = harness.Dial(lab.Socket()); err != nil {
		return n, err
	}
	if err := errors.Join(n.startAgent(ctx), n.startDaemon(ctx)); err != nil {
		return n, err
	}
	if err := n.pull(ctx, image); err != nil {
		return n, err
	}
	for i := range 2 {
		if err := n.live(ctx, fmt.Sprintf("first-%d", i), plain); err != nil {
			return n, fmt.Errorf("the first pods: %w", err)
		}
	}
	n.tally.lives.Store(0)
	time.Sleep(time.Second)
	return n, nil
}

// install puts programs into their places as a package manager does: written beside, then renamed over the old ones.
func (n *node) install(from string, names ...string) error {
	for _, name := range names {
		to := filepath.Join(n.lab.Bin, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), replace(filepath.Join(from, name), to)); err != nil {
			return fmt.Errorf("install %s: %w", name, err)
		}
	}
	return nil
}

func replace(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Rename(to+".new", to))
}

func (n *node) startDaemon(ctx context.Context) error {
	p, err := n.lab.RestartCRI(ctx, n.conf, nil)
	n.daemon.set(p)
	return err
}

func (n *node) startAgent(ctx context.Context) error {
	p, err := harness.Start(n.lab.Logs(), "berth-netd", nil, n.agent...)
	if err != nil {
		return err
	}
	n.netd.set(p)
	return n.lab.AwaitNetd(ctx, p)
}

// pull is PullImage.
func (n *node) pull(ctx context.Context, ref string) error {
	return harness.Again(ctx, "PullImage", func(ctx context.Context) error {
		_, err := n.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref, UserSpecifiedImage: ref}})
		return err
	})
}

// census is what there is of the node, less what a node may keep between pods: supervisors with their directories and
// groups, logs, and the programs themselves.
func (n *node) census() census.Census {
	c := census.Take(n.lab.Dir, n.lab.Run).Of(Mark)
	for kind := range c {
		maps.DeleteFunc(c[kind], func(name string, _ bool) bool {
			return kind == "process" || strings.Contains(name, "/shims/") || strings.Contains(name, n.lab.ShimPrefix()) ||
				strings.Contains(name, "/logs/") || strings.Contains(name, "/images/tmp/")
		})
	}
	return c
}

// left is what the census finds over an earlier one, when things have had ten seconds to end.
func (n *node) left(before census.Census) (left []string) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if left = before.Diff(n.census()); len(left) == 0 {
			return nil
		}
	}
	return left
}
