// Command bench-cni is `make bench-cni`; see package cni of the benchmarks. It reads BERTH_BIN, BERTH_TOOLS, BERTH_OUT and
// BERTH_FILL, and BERTH_BENCH_N, the number of samples.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/berth-project/berth/e2e/bench/cni"
	conform "github.com/berth-project/berth/e2e/cni-conform"
)

func main() { os.Exit(conform.Isolate(run)) }

func run() int {
	c := cni.Config{
		Plugins: filepath.Join(os.Getenv("BERTH_BIN"), "plugins"), Upstream: os.Getenv("BERTH_TOOLS"), Fill: os.Getenv("BERTH_FILL"),
		Samples: 40, Bursts: 5,
	}
	if n, err := strconv.Atoi(os.Getenv("BERTH_BENCH_N")); err == nil && n > 0 {
		c.Samples = n
	}
	r, err := cni.Run(c)
	if err == nil {
		err = r.WriteJSON(filepath.Join(os.Getenv("BERTH_OUT"), "bench", "cni.json"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-cni:", err)
		return 1
	}
	r.Print(os.Stdout)
	if missed := r.PrintBars(os.Stdout, cni.Bars()); missed > 0 {
		fmt.Printf("%d bars are missed\n", missed)
	}
	return 0
}
