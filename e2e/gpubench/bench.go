// Package gpubench measures berth-gpu as the kubelet meets it: over its sockets, on the profile of the largest node
// there is (sixteen A100, all joined by NVLink). No peer can be had here; what is compared is the exhaustive search
// for the same question, and the cost of an empty call.
package gpubench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"time"

	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-project/berth/e2e/dpkubelet"
	"github.com/berth-project/berth/e2e/harness"
)

// Row is one figure. Peer is the exhaustive search's, or an empty call's; 0 where there is nothing to compare with.
type Row struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Berth float64 `json:"berth"`
	Peer  float64 `json:"peer,omitempty"`
	What  string  `json:"what,omitempty"` // what the peer is
	Limit float64 `json:"limit,omitempty"`
}

// Figures of how often.
const (
	gpus     = 16
	calls    = 2000
	restarts = 50
	idle     = 20 * time.Second
)

// Run measures with the programs in bin, in a directory of its own, writes out/bench/gpu.json and a table to w. It
// is an error if a row misses its limit or an answer is not the exhaustive search's.
func Run(ctx context.Context, bin, out string, w io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "gpubench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	plugins := filepath.Join(dir, "device-plugins")
	if err := os.Mkdir(plugins, 0o750); err != nil {
		return err
	}
	conf := filepath.Join(dir, "gpu.toml")
	text := fmt.Sprintf("root = %q\nstate = %q\ndebug_socket = \"\"\n[kubelet]\ndir = %q\ndevice_plugins = %q\nregistration = \"legacy\"\n[driver]\ndev_view = %q\n[cdi]\ndir = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "run"), dir, plugins, filepath.Join(dir, "dev"), filepath.Join(dir, "cdi"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	k, err := dpkubelet.Start(plugins)
	if err != nil {
		return err
	}
	defer func() { k.Stop() }()
	proc, err := harness.Start(dir, "berth-gpu", nil, filepath.Join(bin, "berth-gpu"), "--config", conf, "--fake", "a100x16")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proc.Stop()) }()
	rows, err := measure(ctx, &k, plugins, proc)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, proc.Tail(20))
	}
	return errors.Join(write(rows, filepath.Join(out, "bench", "gpu.json")), table(rows, w))
}

func measure(ctx context.Context, k **dpkubelet.Kubelet, plugins string, proc *harness.Process) ([]Row, error) {
	p, err := (*k).Connect(ctx, gpus, 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer func() { p.Close() }()
	empty, err := timed(calls, func(int) error { _, err := p.GetDevicePluginOptions(ctx, &dp.Empty{}); return err })
	if err != nil {
		return nil, err
	}
	allocate, err := timed(calls, func(i int) error {
		r, err := p.Allocate(ctx, &dp.AllocateRequest{ContainerRequests: []*dp.ContainerAllocateRequest{{DevicesIds: []string{p.IDs[i%gpus], p.IDs[(i+1)%gpus]}}}})
		if err == nil && len(r.GetContainerResponses()[0].GetCdiDevices()) != 2 {
			err = fmt.Errorf("allocate answered %v", r)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	preferred, search, err := preference(ctx, p)
	if err != nil {
		return nil, err
	}
	again := 0.0
	for range restarts {
		(*k).Stop()
		p.Close()
		if *k, err = dpkubelet.Start(plugins); err != nil {
			return nil, err
		}
		start := time.Now()
		if p, err = (*k).Connect(ctx, gpus, 5*time.Second); err != nil {
			return nil, err
		}
		again = max(again, time.Since(start).Seconds())
	}
	cpu, pss, err := idleCost(ctx, proc)
	if err != nil {
		return nil, err
	}
	return []Row{
		{"allocate_ms_p99", "ms", p99(allocate), p99(empty), "an empty call", 2},
		{"preferred_ms_p50", "ms", quantile(preferred, 50), search, "exhaustive search, 8 of 16", 0},
		{"preferred_ms_p99", "ms", p99(preferred), search, "exhaustive search, 8 of 16", 10},
		{"reregister_s_max", "s", again, 0, "", 2},
		{"idle_cpu_percent", "%", cpu, 0, "", 0},
		{"pss_mib", "MiB", pss, 0, "", 0},
	}, nil
}

// preference asks for 8 of 16 with full NVLink, and compares with every set there is.
func preference(ctx context.Context, p *dpkubelet.Plugin) (took []time.Duration, search float64, err error) {
	ids := slices.Clone(p.IDs)
	slices.Sort(ids)
	start := time.Now()
	want := exhaustive(ids, 8, func(a, b int) int { return 12*10 + 1 })
	search = time.Since(start).Seconds() * 1e3
	took, err = timed(200, func(int) error {
		r, err := p.GetPreferredAllocation(ctx, &dp.PreferredAllocationRequest{ContainerRequests: []*dp.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: p.IDs, AllocationSize: 8}}})
		if err != nil {
			return err
		}
		got := slices.Clone(r.GetContainerResponses()[0].GetDeviceIDs())
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("preferred %v, exhaustive search says %v", got, want)
		}
		return nil
	})
	return took, search, err
}

// exhaustive values every set from scratch: the worth inside, then the worth of the rest, then the first ids.
func exhaustive(ids []string, size int, score func(a, b int) int) []string {
	var best uint
	top := [2]int{-1, -1}
	for set := uint(0); set < 1<<len(ids); set++ {
		if bits.OnesCount(set) != size {
			continue
		}
		var v [2]int
		for a := range ids {
			for b := range a {
				if in := set >> a & 1; in == set>>b&1 {
					v[1-in] += score(a, b)
				}
			}
		}
		if c := slices.Compare(v[:], top[:]); c > 0 || c == 0 && bits.Reverse(set) > bits.Reverse(best) {
			best, top = set, v
		}
	}
	var out []string
	for i, id := range ids {
		if best>>i&1 == 1 {
			out = append(out, id)
		}
	}
	return out
}

func timed(n int, call func(i int) error) ([]time.Duration, error) {
	all := make([]time.Duration, 0, n)
	for i := range n {
		start := time.Now()
		if err := call(i); err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
	}
	return all, nil
}

func p99(all []time.Duration) float64 { return quantile(all, 99) }

// quantile in milliseconds, of hundredths.
func quantile(all []time.Duration, q int) float64 {
	slices.Sort(all)
	return all[len(all)*q/100].Seconds() * 1e3
}

func write(rows []Row, path string) error {
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// table writes the rows, and is an error if one misses its limit.
func table(rows []Row, w io.Writer) error {
	var all []error
	for _, r := range rows {
		line := fmt.Sprintf("  %-18s %10.3f %-4s", r.Name, r.Berth, r.Unit)
		if r.Limit > 0 {
			line += fmt.Sprintf("  at most %g", r.Limit)
			if r.Berth > r.Limit {
				all = append(all, fmt.Errorf("%s is %.3f, more than %g", r.Name, r.Berth, r.Limit))
			}
		}
		if r.What != "" {
			line += fmt.Sprintf("  (%s: %.3f)", r.What, r.Peer)
		}
		fmt.Fprintln(w, line)
	}
	return errors.Join(all...)
}
