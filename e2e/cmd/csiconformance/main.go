// Command csiconformance runs csi-sanity on every backend of berth-csi and prints a line for each. Those that need what
// this machine's kernel has not (project quota, device-mapper) run in a virtual machine each, if BERTH_VM names a directory
// for its kernel: there it runs again, with the name of what is needed as its argument.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-project/berth/e2e/csisanity"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "csiconformance:", err)
		os.Exit(1)
	}
}

func run() error {
	bin, tools, out := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_TOOLS"), filepath.Join(os.Getenv("BERTH_OUT"), "csi-sanity")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	var failed error
	backends, limit := csisanity.Backends(), 3*time.Minute
	for _, n := range csisanity.Guests() {
		if slices.Equal(os.Args[1:], []string{n.Name}) { // in a guest
			backends, limit = n.Backends, 20*time.Minute
		}
	}
	for _, b := range backends {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		r, err := csisanity.Run(ctx, b, bin, tools, out)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", b.Name, err)
		}
		fmt.Printf("  %-28s %3d passed, %d failed, %d cannot pass anywhere, %d skipped\n", b.Name, r.Passed, len(r.Failed), len(r.Excused), r.Skipped)
		for _, f := range r.Failed {
			failed = errors.Join(failed, fmt.Errorf("%s: %s", b.Name, f))
		}
	}
	if cache := os.Getenv("BERTH_VM"); cache != "" {
		for _, n := range csisanity.Guests() {
			failed = errors.Join(failed, guest(n, csisanity.Paths{Cache: cache, Bin: bin, Tools: tools, Out: out}))
		}
	}
	for spec, why := range csisanity.Cannot() {
		fmt.Printf("  cannot pass anywhere: %q: %s\n", spec, why)
	}
	if failed == nil {
		fmt.Println("csi-sanity 5.6: every spec that can pass does, on every backend")
	}
	return failed
}

func guest(n csisanity.Needs, p csisanity.Paths) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := os.RemoveAll(filepath.Join(p.Out, "guest-"+n.Name)); err != nil {
		return err
	}
	return csisanity.Guest(ctx, n, p, os.Stdout)
}
