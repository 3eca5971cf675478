// Command bench-gpu is `make bench-gpu`; see package gpubench.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth/e2e/gpubench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	bin, out := os.Getenv("BERTH_BIN"), os.Getenv("BERTH_OUT")
	if bin == "" || out == "" {
		fmt.Fprintln(os.Stderr, "bench-gpu: BERTH_BIN and BERTH_OUT name where berth-gpu is and where gpu.json goes: run make bench-gpu")
		os.Exit(2) //nolint:gocritic // stop has nothing left to do
	}
	if err := gpubench.Run(ctx, bin, out, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench-gpu:", err)
		os.Exit(1)
	}
}
