// Command csibench is `make bench-csi`; see package csibench.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/berth-project/berth/e2e/csibench"
	"github.com/berth-project/berth/e2e/harness"
)

func main() {
	lab, err := harness.FromEnv("csibench")
	if err != nil {
		fmt.Fprintln(os.Stderr, "csibench:", err)
		os.Exit(1)
	}
	os.Exit(harness.Isolate(lab, func() int {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
		defer cancel()
		if err := csibench.Run(ctx, lab, os.Getenv("BERTH_OUT"), os.Args[1:]...); err != nil {
			fmt.Fprintln(os.Stderr, "csibench:", err)
			return 1
		}
		return 0
	}))
}
