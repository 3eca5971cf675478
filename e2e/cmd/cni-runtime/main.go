// Command cni-runtime lets containerd use our plugins, type berth and the upstream names, and runs the networking specs of
// the CRI conformance suite on it. It reads BERTH_BIN, BERTH_TOOLS and BERTH_OUT.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/critest"
	"github.com/berth-project/berth/e2e/harness"
)

// focus are the specs that need a pod's network.
const focus = "Networking|port mapping|portforward|hostnet|HostNetwork|DNS|bandwidth"

func main() {
	lab, err := harness.FromEnv("cnirt")
	if err != nil {
		fmt.Fprintln(os.Stderr, "cni-runtime:", err)
		os.Exit(2)
	}
	lab.Pods = "10.93.0.0/16"
	os.Exit(harness.Isolate(lab, func() int {
		ctx, done := context.WithTimeout(context.Background(), 20*time.Minute)
		defer done()
		if err := run(ctx, lab); err != nil {
			fmt.Fprintln(os.Stderr, "cni-runtime:", err)
			return 1
		}
		fmt.Println("cni-runtime: containerd passes every networking spec with our plugins")
		return 0
	}))
}

func run(ctx context.Context, lab *harness.Lab) error {
	err := harness.Stop(ctx, lab)
	if err == nil {
		_, err = lab.StartRegistry(ctx)
	}
	for _, n := range []struct{ name, conflist string }{{"type berth", lab.Conflist()}, {"bridge, host-local, portmap", withState(lab)}} {
		if err == nil {
			err = suite(ctx, lab, n.name, n.conflist)
		}
	}
	return errors.Join(err, harness.Stop(context.WithoutCancel(ctx), lab))
}

// withState is the upstream plugins' network with their state where the lab's is.
func withState(lab *harness.Lab) string {
	state := fmt.Sprintf(`"stateDir": %q, "type": "`, filepath.Join(lab.Run, "cni"))
	conf := strings.Replace(lab.UpstreamConflist(), `"type": "bridge`, state+"bridge", 1)
	return strings.Replace(conf, `"type": "portmap`, state+"portmap", 1)
}

func suite(ctx context.Context, lab *harness.Lab, name, conflist string) error {
	p, err := lab.StartContainerd(ctx, harness.Options{Conflist: conflist, Plugins: filepath.Join(lab.Bin, "plugins")})
	if err != nil {
		return err
	}
	out := filepath.Join(os.Getenv("BERTH_OUT"), "conformance", "cni-runtime")
	r, err := critest.Run(ctx, filepath.Join(lab.Tool, "critest"), lab.ContainerdSocket(), out, critest.SPDY, focus)
	if err == nil {
		fmt.Printf("  containerd with %-30s %2d passed, %d failed\n", name, r.Count("passed"), r.Count("failed"))
		for _, f := range r.Names("failed") {
			err = errors.Join(err, fmt.Errorf("%s: failed: %s", name, f))
		}
		if r.Count("passed") == 0 {
			err = errors.Join(err, errors.New("no spec ran"))
		}
	}
	c, derr := harness.Dial(lab.ContainerdSocket())
	if derr == nil {
		derr = c.RemoveAll(ctx)
		c.Close()
	}
	return errors.Join(err, derr, p.Stop())
}
