// Package soak is `make soak`: pods come and go for an hour, five a second, on a node whose daemon and network agent are
// upgraded every ten minutes, and nothing may grow. docs/design/soak.md says what is done, measured and called flat.
package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// Mark is part of the name of everything that a soak makes.
const Mark = "berth-soak"

// Config is what the environment asks for.
type Config struct {
	Bin, Next, Tools, Out string        // absolute; Next has the programs of another version
	For                   time.Duration // the load
	Upgrade               time.Duration // between upgrades
	Sample                time.Duration // between samples
	Rate                  float64       // pods a second
}

// FromEnv reads BERTH_BIN, BERTH_SOAK_NEXT, BERTH_TOOLS, BERTH_OUT and BERTH_SOAK, how long. A soak shorter than an hour
// has its six parts shorter, down to a minute each.
func FromEnv() (Config, error) {
	c := Config{For: time.Hour, Rate: 5}
	var all []error
	for name, to := range map[string]*string{"BERTH_BIN": &c.Bin, "BERTH_SOAK_NEXT": &c.Next, "BERTH_TOOLS": &c.Tools, "BERTH_OUT": &c.Out} {
		if *to = os.Getenv(name); !filepath.IsAbs(*to) {
			all = append(all, fmt.Errorf("%s is %q, want an absolute path", name, *to))
		}
	}
	if s := os.Getenv("BERTH_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 3*time.Minute {
			all = append(all, fmt.Errorf("BERTH_SOAK is %q, want a duration of at least 3m", s))
		}
		c.For = d
	}
	c.Upgrade = min(max(c.For/6, time.Minute), 10*time.Minute)
	c.Sample = min(max(c.For/360, 2*time.Second), 10*time.Second)
	return c, errors.Join(all...)
}

// Dirs are the directories of a soak.
func Dirs() []string { return []string{"/var/lib/" + Mark} }

// Run soaks the node, writes soak.json and soak.svg, and prints the verdicts. It fails if a pod's life was not as it should
// be, if anything is left, if less than 95 % of the pods came, or if something grows.
func Run(ctx context.Context, c Config) error {
	begin := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("[%5.0f s] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	say("1. a node with its agent, a registry and a first pod")
	n, err := newNode(ctx, c)
	if err != nil {
		n.lab.KeepLogs(os.Stderr)
		return err
	}
	clean := n.census()
	say("2. pods that stay, who reads from them, and what a kubelet asks")
	home, err := n.settle(ctx)
	if err != nil {
		n.lab.KeepLogs(os.Stderr)
		return err
	}
	say("3. %.0f pods a second for %v, an upgrade every %v, a sample every %v", c.Rate, c.For, c.Upgrade, c.Sample)
	samples := n.load(ctx, say)
	say("4. the pods that stayed leave; what is left?")
	n.vacate(context.WithoutCancel(ctx), home)
	left := n.left(clean)
	for _, l := range left {
		n.tally.fault("left behind: %s", l)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if faults, _ := n.tally.seen(); len(faults) > 0 {
		n.lab.KeepLogs(os.Stderr)
	}
	return n.finish(samples, len(left))
}

// load is the soak itself: all of its parts side by side, until its time is over.
func (n *node) load(ctx context.Context, say func(string, ...any)) (samples []Sample) {
	ctx, cancel := context.WithTimeout(ctx, n.For)
	defer cancel()
	n.begin = time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { n.pace(ctx) })
	wg.Go(func() { n.upgrades(ctx, say) })
	wg.Go(func() { samples = n.watch(ctx, say) })
	wg.Wait()
	return samples
}

// wait sleeps, and says whether ctx lives on.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// program is a process of the node that is upgraded in its course.
type program struct {
	mu   sync.Mutex
	proc *harness.Process
}

func (p *program) get() *harness.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc
}

func (p *program) set(proc *harness.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proc = proc
}
