// Package executor is `make bench-executor`: berth-shim's executor alone, without a daemon, against an OCI program with the
// same container. cri/test/versus does the work; this package runs it where it leaves nothing behind, against runc in a cage
// on this machine and against Debian's crun in a virtual machine, and makes rows of what it tells.
package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-project/berth/e2e/bench/report"
	"github.com/berth-project/berth/e2e/images"
	"github.com/berth-project/berth/e2e/vm"
)

// Mark is part of the name of everything that a run makes on this machine.
const Mark = "berth-versus"

// Config is what the environment asks for.
type Config struct {
	Bin, Tools, Out, VM string // absolute; VM is the cache of guests' kernels
	Samples             int    // on this machine
	GuestSamples        int    // in the guest, which is 10 to 20 times slower
}

// FromEnv reads BERTH_BIN, BERTH_TOOLS, BERTH_OUT, BERTH_VM and BERTH_BENCH_N, the samples on this machine.
func FromEnv() (Config, error) {
	c := Config{Samples: 50, GuestSamples: 20}
	var all []error
	for name, to := range map[string]*string{"BERTH_BIN": &c.Bin, "BERTH_TOOLS": &c.Tools, "BERTH_OUT": &c.Out, "BERTH_VM": &c.VM} {
		if *to = os.Getenv(name); !filepath.IsAbs(*to) {
			all = append(all, fmt.Errorf("%s is %q, want an absolute path", name, *to))
		}
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

// HostMounts is how many mounts the host has when each container on this machine is run a second time.
const HostMounts = 5000

// Dir is where a run on this machine keeps its files.
func Dir() string { return "/var/lib/" + Mark }

// Told is what versus tells: milliseconds by side and step.
type Told map[string]struct {
	Create, Start, Delete report.Series
}

// argv is versus with its programs at these places.
func argv(versus, shim, peer, busybox, work string, samples int) []string {
	return []string{versus, "-shim", shim, "-peer", peer, "-true", busybox, "-work", work, "-group", "/" + Mark, "-n", strconv.Itoa(samples)}
}

// Host runs versus against runc, inside a cage, and writes what it tells to file.
func Host(ctx context.Context, c Config, file string) error {
	a := argv(filepath.Join(c.Bin, "versus"), filepath.Join(c.Bin, "berth-shim"), filepath.Join(c.Tools, "runc"), images.Busybox, filepath.Join(Dir(), "work"), c.Samples)
	a = append(a, "-mounts", strconv.Itoa(HostMounts))
	cmd := exec.CommandContext(ctx, a[0], a[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("versus: %w: %s", err, out)
	}
	return os.WriteFile(file, out, 0o644)
}

// Guest runs versus against Debian's crun in a virtual machine with pure cgroup v2 and returns what it tells. work is an
// empty directory, which the caller removes.
func Guest(ctx context.Context, c Config, work string) (Told, error) {
	r, err := vm.Run(ctx, vm.Machine{
		Cache: c.VM, Work: work, MemoryMB: 1024, DiskMB: 600, CPUs: 2, Programs: []string{"crun"},
		Files:   map[string]string{"/berth/versus": filepath.Join(c.Bin, "versus"), "/berth/berth-shim": filepath.Join(c.Bin, "berth-shim")},
		Command: argv("/berth/versus", "/berth/berth-shim", "/bin/crun", "/bin/busybox", "/var/lib/versus", c.GuestSamples),
		Env:     []string{"PATH=/bin:/sbin"},
	})
	if err != nil {
		return nil, err
	}
	if r.Exit != 0 {
		return nil, fmt.Errorf("versus ends with %d in the guest: %s", r.Exit, r.Output)
	}
	return Parse(r.Output)
}

// Parse reads the last line of what versus printed.
func Parse(out string) (Told, error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var t Told
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &t); err != nil {
		return nil, fmt.Errorf("versus said %q: %w", lines[len(lines)-1], err)
	}
	for _, side := range []string{"berth", "peer"} {
		if n := len(t[side].Create); n == 0 || n != len(t[side].Start) || n != len(t[side].Delete) {
			return nil, fmt.Errorf("versus has %d, %d and %d samples of %s", n, len(t[side].Start), len(t[side].Delete), side)
		}
	}
	return t, nil
}

// Rows are those of one peer: the steps, and executor_vs_PEER, the median of a container's three steps together. Where samples
// were taken among many mounts of the host there are two more: executor_vs_PEER_5000_mounts, and executor_5000_mounts, whose peer is
// the executor without them.
func Rows(r *report.Report, peer string, t Told) {
	own, other := t["berth"], t["peer"]
	r.Add("executor_create_vs_"+peer, "ms", own.Create.P50(), other.Create.P50())
	r.Add("executor_start_vs_"+peer, "ms", own.Start.P50(), other.Start.P50())
	r.Add("executor_delete_vs_"+peer, "ms", own.Delete.P50(), other.Delete.P50())
	r.Add("executor_vs_"+peer, "ms", t.whole("berth"), t.whole("peer"))
	if among := fmt.Sprintf("_%d_mounts", HostMounts); len(t["berth_mounts"].Create) > 0 {
		r.Add("executor_vs_"+peer+among, "ms", t.whole("berth_mounts"), t.whole("peer_mounts"))
		r.Add("executor"+among, "ms", t.whole("berth_mounts"), t.whole("berth"))
	}
}

// whole is the median of a side's three steps together.
func (t Told) whole(side string) float64 {
	var all report.Series
	for i := range t[side].Create {
		all = append(all, t[side].Create[i]+t[side].Start[i]+t[side].Delete[i])
	}
	return all.P50()
}

// Bars are what the executor is held to: an eighth of runc's time, a third of crun's, and its own whatever the host has mounted.
func Bars() []report.Bar {
	return []report.Bar{{Name: "executor_vs_runc", Limit: 1.0 / 8}, {Name: "executor_vs_crun", Limit: 1.0 / 3}, {Name: "executor_5000_mounts", Limit: 1.2}}
}
