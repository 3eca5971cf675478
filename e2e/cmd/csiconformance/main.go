// Command csiconformance runs csi-sanity on every backend of berth-csi and prints a line for each.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	for _, b := range csisanity.Backends() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
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
	for spec, why := range csisanity.Cannot() {
		fmt.Printf("  cannot pass anywhere: %q: %s\n", spec, why)
	}
	if failed == nil {
		fmt.Println("csi-sanity 5.6: every spec that can pass does, on every backend")
	}
	return failed
}
