// Command bench-net is `make bench-net`; see package overlay of the benchmarks. It reads BERTH_BIN, BERTH_TOOLS, BERTH_OUT
// and BERTH_BENCH_N, the number of rounds.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/berth-project/berth/e2e/bench/overlay"
	"github.com/berth-project/berth/e2e/harness"
)

func main() {
	lab, err := harness.FromEnv("benchnet")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-net:", err)
		os.Exit(1)
	}
	os.Exit(harness.Isolate(lab, func() int { return run(lab) }))
}

func run(lab *harness.Lab) int {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c := overlay.Config{Lab: lab, Rounds: 40, Round: 500 * time.Millisecond, Joins: 3, Fleet: 1000, Say: os.Stdout}
	if n, err := strconv.Atoi(os.Getenv("BERTH_BENCH_N")); err == nil && n > 0 {
		c.Rounds, c.Joins = n, min(n, c.Joins)
	}
	if err := harness.Stop(ctx, lab); err != nil { // what an interrupted run left
		fmt.Fprintln(os.Stderr, "bench-net: leftovers:", err)
		return 1
	}
	r, err := overlay.Run(ctx, c)
	out := filepath.Join(os.Getenv("BERTH_OUT"), "bench")
	if err == nil {
		err = r.AddJSON(filepath.Join(out, "bgp.json")) // of `make bench-bgp`, which has just run
	}
	if err == nil {
		err = r.WriteJSON(filepath.Join(out, "net.json"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-net:", err)
		return 1
	}
	if err := errors.Join(os.RemoveAll(lab.Dir), os.RemoveAll(lab.Run)); err != nil {
		fmt.Fprintln(os.Stderr, "bench-net:", err)
		return 1
	}
	r.Print(os.Stdout)
	if missed := r.PrintBars(os.Stdout, overlay.Bars()); missed > 0 {
		fmt.Printf("%d bars are missed\n", missed)
	}
	return 0
}
