// Package bench is `make bench-cri`: Berth, containerd with runc, and what the kernel alone takes, in one run,
// interleaved, driven through the CRI by the same client. docs/design/benchmarks.md says what is measured how.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/bench/rig"
)

// Config is what the environment asks for.
type Config struct {
	Bin, Tools, Out string   // absolute; Out is where cri.json goes
	Picture         string   // SVG file, or empty
	Steps           []string // only these; none: all
	Samples         int      // pods per side, one after the other
	Rounds          int      // bursts of 30 and pulls per side
	Hundreds        int      // bursts of 100 per side
	Each            int      // containers in each of ten pods for the lists
	Noise           float64
	Patience        time.Duration // how long a sample waits for the machine to be quieter than Noise
}

// FromEnv reads BERTH_BIN, BERTH_TOOLS, BERTH_OUT, BERTH_BENCH_N, BERTH_BENCH_QUICK, BERTH_BENCH_STEPS (of
// privileges, sequence, calls, bursts, userns, crowded, pulls, lists; commas between) and BERTH_BENCH_SVG.
func FromEnv() (Config, error) {
	c := Config{Picture: os.Getenv("BERTH_BENCH_SVG"), Samples: 30, Rounds: 5, Hundreds: 2, Each: 100, Noise: 20, Patience: 5 * time.Second}
	if s := os.Getenv("BERTH_BENCH_STEPS"); s != "" {
		c.Steps = strings.Split(s, ",")
	}
	var all []error
	for name, to := range map[string]*string{"BERTH_BIN": &c.Bin, "BERTH_TOOLS": &c.Tools, "BERTH_OUT": &c.Out} {
		if *to = os.Getenv(name); !filepath.IsAbs(*to) {
			all = append(all, fmt.Errorf("%s is %q, want an absolute path", name, *to))
		}
	}
	c.Out = filepath.Join(c.Out, "bench")
	if c.Picture == "" {
		c.Picture = filepath.Join(c.Out, "cri.svg")
	}
	if os.Getenv("BERTH_BENCH_QUICK") == "1" {
		c.Samples, c.Rounds, c.Hundreds, c.Each, c.Patience = 5, 2, 1, 10, time.Second
	}
	if s := os.Getenv("BERTH_BENCH_N"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			all = append(all, fmt.Errorf("BERTH_BENCH_N is %q, want a number of samples", s))
		}
		c.Samples = n
	}
	return c, errors.Join(all...)
}

// asks says whether a step is to be run.
func (c Config) asks(step string) bool { return len(c.Steps) == 0 || slices.Contains(c.Steps, step) }

// run is the state of a benchmark: sides by their part in it, and what was found.
type run struct {
	Config
	stage   *stage
	report  report.Report
	weights map[string]weight
	noisy   int // samples that were taken although the machine was busy
	begin   time.Time
}

// Run measures everything, writes cri.json and the picture, prints the table and the verdicts. It fails if anything
// fails or if containers' privileges differ; a bar that is missed is printed, not an error.
func Run(ctx context.Context, c Config) error {
	b := &run{Config: c, weights: map[string]weight{}, begin: time.Now()}
	steps := []struct {
		key, what string
		do        func(context.Context) error
	}{
		{"", "starting Berth (twice: own network, upstream plugins), containerd and the floor", b.setUp},
		{"privileges", "comparing what a container may do", b.privileges},
		{"sequence", fmt.Sprintf("%d pods per side, one after the other, interleaved", c.Samples), b.sequence},
		{"calls", "system calls of one pod's life", b.calls},
		{"bursts", fmt.Sprintf("bursts of 30 (%d per side) and 100 (%d per side); memory at 100 pods", c.Rounds, c.Hundreds), b.bursts},
		{"userns", fmt.Sprintf("%d pods per side and bursts of 100 with user namespaces", c.Samples), b.userns},
		{"crowded", fmt.Sprintf("%d pods per side and bursts of 100 while %d others run on that side", c.Samples, standing), b.crowded},
		{"pulls", fmt.Sprintf("pulls of 128 MiB in 8 layers and of 11,500 small files (%d each per side, new file systems)", c.Rounds), b.pulls},
		{"lists", fmt.Sprintf("lists of %d running containers", 10*c.Each), b.lists},
	}
	for _, s := range steps {
		if s.key != "" && !c.asks(s.key) {
			continue
		}
		fmt.Printf("\n[%4.0f s] %s\n", time.Since(b.begin).Seconds(), s.what)
		if err := s.do(ctx); err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", s.what, err), b.stage.logs())
			if len(b.report.Rows) > 0 { // hours may be in them
				err = errors.Join(err, b.finish())
			}
			return err
		}
	}
	return b.finish()
}

// quiet waits for a quiet machine and counts where it stayed noisy.
func (b *run) quiet(ctx context.Context) {
	if !rig.Quiet(ctx, b.Noise, b.Patience) {
		b.noisy++
	}
}

// settle lets a side's asynchronous teardown end, so that the other one's figures do not carry it.
func settle(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
