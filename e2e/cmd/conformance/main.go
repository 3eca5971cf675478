// Command conformance is `make conformance-cri`: the whole CRI suite on Berth and, in the same run, on containerd,
// over SPDY and over WebSocket. It fails if a spec fails, or if the peer passes one that Berth does not run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-project/berth/e2e/critest"
	"github.com/berth-project/berth/e2e/harness"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	ctx, done := context.WithTimeout(ctx, 45*time.Minute)
	defer done()
	if err := run(ctx, os.Getenv("BERTH_BIN"), os.Getenv("BERTH_TOOLS"), filepath.Join(os.Getenv("BERTH_OUT"), "conformance")); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, tools, out string) error {
	lab := harness.NewLab("conform", bin, tools)
	lab.Pods = "10.94.0.0/16"
	if err := harness.Stop(ctx, lab); err != nil {
		return err
	}
	var bad []string
	err := suites(ctx, lab, filepath.Join(tools, "critest"), out, &bad)
	err = errors.Join(err, harness.Stop(context.WithoutCancel(ctx), lab))
	if err != nil {
		return err
	}
	for _, b := range bad {
		fmt.Println("  ✗", b)
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d specs are not as they must be", len(bad))
	}
	fmt.Println("conformance-cri: every spec that can run here passes, on both transports")
	return nil
}

func suites(ctx context.Context, lab *harness.Lab, program, out string, bad *[]string) error {
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	peers := map[critest.Transport]critest.Report{}
	both := []critest.Transport{critest.SPDY, critest.WebSocket}
	peer, err := lab.StartContainerd(ctx, harness.Options{})
	if err != nil {
		return err
	}
	for _, t := range both {
		if peers[t], err = suite(ctx, "containerd", program, lab.ContainerdSocket(), filepath.Join(out, "containerd"), t); err != nil {
			return errors.Join(err, empty(ctx, lab.ContainerdSocket()), peer.Stop())
		}
	}
	if err := errors.Join(empty(ctx, lab.ContainerdSocket()), peer.Stop()); err != nil {
		return err
	}
	lab.Pods = "10.95.0.0/16" // the peer's bridge still has the first address of the other range
	if _, err := lab.StartCRI(ctx, harness.Options{}); err != nil {
		return err
	}
	for _, t := range both {
		r, err := suite(ctx, "Berth", program, lab.Socket(), filepath.Join(out, "berth"), t)
		if err != nil {
			return err
		}
		*bad = append(*bad, critest.Verdict(r, peers[t])...)
		if t == critest.SPDY {
			explain(r)
		}
	}
	return nil
}

// empty removes what a suite left on a runtime, so that no shim of it goes on.
func empty(ctx context.Context, socket string) error {
	c, err := harness.Dial(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.RemoveAll(ctx)
}

func suite(ctx context.Context, name, program, socket, dir string, t critest.Transport) (critest.Report, error) {
	start := time.Now()
	r, err := critest.Run(ctx, program, socket, dir, t, "")
	if err != nil {
		return nil, fmt.Errorf("%s over %s: %w", name, t, err)
	}
	fmt.Printf("  %-10s %-9s %3d passed, %d failed, %2d not run, %s\n", name, t, r.Count("passed"), r.Count("failed"), r.Count("skipped"), time.Since(start).Round(time.Second))
	for _, f := range r.Names("failed") {
		fmt.Printf("             failed: %s\n", f)
	}
	return r, nil
}

func explain(r critest.Report) {
	fmt.Println("  not run, and why:")
	for _, name := range r.Names("skipped") {
		fmt.Printf("    %-110.110s  %s\n", name, critest.Reason(name))
	}
}
