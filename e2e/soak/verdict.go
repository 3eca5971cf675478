package soak

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-project/berth/e2e/soak/trend"
)

// bound is what one measure may grow by in an hour and still be flat: the upper end of its slope's confidence interval
// is held against it. A shorter soak may grow by as much in its whole length.
type bound struct {
	name, unit string
	limit      float64
	compare    compared
}

// compared says which samples a slope is taken of.
type compared int

const (
	// all are compared with each other.
	all compared = iota
	// ages: those of the same age in the lives of a process that upgrades replace. What a new process starts with, and takes in
	// its first minutes, is a saw's tooth of its own in each life, and says nothing of what goes from life to life.
	ages
	// within: those of one life, but for its first [settled].
	within
)

// bounds, at 18,000 pods an hour: a leak of 120 bytes a pod, or of one descriptor in 9,000 pods, is more than they allow.
func bounds() []bound {
	return []bound{
		{"daemon_rss", "KiB/h", 1024, ages},
		{"daemon_pss", "KiB/h", 1024, ages},
		{"daemon_rss", "KiB/h", 8192, within},
		{"daemon_heap_goal", "KiB/h", 1024, ages},
		{"daemon_heap_goal", "KiB/h", 1536, within},
		{"daemon_fds", "1/h", 2, ages},
		{"daemon_fds", "1/h", 6, within},
		{"daemon_goroutines", "1/h", 2, ages},
		{"daemon_goroutines", "1/h", 6, within},
		{"daemon_threads", "1/h", 6, ages},
		{"agent_rss", "KiB/h", 1024, ages},
		{"agent_rss", "KiB/h", 8192, within},
		{"agent_fds", "1/h", 2, ages},
		{"agent_threads", "1/h", 6, ages},
		{"supervisors", "1/h", 2, all},
		{"supervisors_pss", "KiB/h", 2048, all},
		{"supervisors_fds", "1/h", 2, all},
		{"supervisors_threads", "1/h", 6, all},
		{"root_bytes", "KiB/h", 1024, all},
		{"root_inodes", "1/h", 20, all},
		{"state_bytes", "KiB/h", 1024, all},
		{"state_inodes", "1/h", 20, all},
		{"cgroups", "1/h", 10, all},
		{"mounts", "1/h", 2, all},
		{"netns", "1/h", 2, all},
		{"links", "1/h", 2, all},
		{"nft_lines", "1/h", 10, all},
		{"processes", "1/h", 2, all},
	}
}

// seen are measures that are shown and not judged, because others on the machine move them too.
func seen() []bound {
	return []bound{{"machine_slab", "KiB/h", math.Inf(1), all}, {"machine_netns", "1/h", math.Inf(1), all}}
}

// Row is one line of soak.json. For a slope Berth is the slope, Low and High its 95 % confidence interval, Limit what High
// may be; for a count only Berth is given, and Limit where it must be 0.
type Row struct {
	Name  string   `json:"name"`
	Unit  string   `json:"unit"`
	Berth float64  `json:"berth"`
	Low   *float64 `json:"low,omitempty"`
	High  *float64 `json:"high,omitempty"`
	Limit *float64 `json:"limit,omitempty"`
	Flat  *bool    `json:"flat,omitempty"`
}

// finish judges, writes and prints.
func (n *node) finish(samples []Sample, left int) error {
	rows, grows := judge(samples, n.For)
	faults, longest := n.tally.seen()
	count := func(name, unit string, v float64) { rows = append(rows, Row{Name: name, Unit: unit, Berth: round(v)}) }
	rate := float64(n.tally.lives.Load()) / n.For.Seconds()
	count("lives", "count", float64(n.tally.lives.Load()))
	count("rate", "pods/s", rate)
	count("faults", "count", float64(len(faults)))
	count("left_behind", "count", float64(left))
	count("upgrades", "count", float64(n.tally.upgrades.Load()))
	count("longest_without_daemon", "ms", float64(longest.Milliseconds()))
	count("execs", "count", float64(n.tally.execs.Load()))
	count("log_lines_read", "count", float64(n.tally.logLines.Load()))
	count("streams", "count", float64(n.tally.streams.Load()))
	count("events", "count", float64(n.tally.events.Load()))
	count("pulls", "count", float64(n.tally.pulls.Load()))
	err := errors.Join(writeJSON(filepath.Join(n.Out, "soak.json"), rows), os.WriteFile(filepath.Join(n.Out, "soak.svg"), picture(samples, n.For), 0o644),
		writeJSON(filepath.Join(n.Out, "soak-samples.json"), samples))
	table(os.Stdout, rows)
	fmt.Printf("\n%d lives, %.2f a second; %d faults; %d things left; %d of %d slopes are flat; the figures are in %s\n",
		n.tally.lives.Load(), rate, len(faults), left, len(bounds())-len(grows), len(bounds()), filepath.Join(n.Out, "soak.json"))
	if rate < 0.95*n.Rate {
		err = errors.Join(err, fmt.Errorf("only %.2f pods a second lived, want %.2f: this machine is too busy to soak on", rate, 0.95*n.Rate))
	}
	if len(faults) > 0 {
		err = errors.Join(err, fmt.Errorf("%d faults, the first: %s", len(faults), faults[0]))
	}
	if len(grows) > 0 {
		err = errors.Join(err, fmt.Errorf("not flat: %v", grows))
	}
	return err
}

// Judge reads the samples of a soak of that length again, prints its slopes and says which are not flat.
func Judge(file string, length time.Duration, w io.Writer) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var samples []Sample
	if err := json.Unmarshal(b, &samples); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	rows, grows := judge(samples, length)
	table(w, rows)
	fmt.Fprintf(w, "\n%d of %d slopes are flat\n", len(bounds())-len(grows), len(bounds()))
	if len(grows) > 0 {
		return fmt.Errorf("not flat: %v", grows)
	}
	return nil
}

// floor is the least of each measure in each sixtieth of a soak, of one daemon. What is held for good stands in it; what pods
// under way hold, more of them the busier the machine is, does not.
func floor(samples []Sample, length time.Duration) (least []Sample) {
	span, begin := length/60, time.Duration(0)
	for _, s := range samples {
		last := len(least) - 1
		if last < 0 || least[last].Life != s.Life || s.At-begin >= span {
			least, begin = append(least, Sample{At: s.At, Life: s.Life, Values: maps.Clone(s.Values)}), s.At
			continue
		}
		for name, v := range s.Values {
			least[last].Values[name] = min(v, least[last].Values[name])
		}
	}
	return least
}

// judge fits a line through the last two thirds of every measure's floor, and says which grow.
func judge(samples []Sample, length time.Duration) (rows []Row, grows []string) {
	samples = floor(samples, length)
	for _, b := range append(bounds(), seen()...) {
		line := trend.Fit(b.blocks(samples, length)...)
		name := b.name + "_slope"
		if b.compare == within {
			name = b.name + "_slope_within_a_life"
		}
		r := Row{Name: name, Unit: b.unit, Berth: round(line.Slope)}
		if math.IsNaN(line.Slope) {
			grows = append(grows, name+" (too few samples)")
			continue
		}
		low, high := round(line.Low), round(line.High)
		r.Low, r.High = &low, &high
		if !math.IsInf(b.limit, 1) {
			limit := b.limit * float64(time.Hour) / float64(length)
			flat := line.High <= limit
			r.Limit, r.Flat = &limit, &flat
			if !flat {
				grows = append(grows, name)
			}
		}
		rows = append(rows, r)
	}
	return rows, grows
}

// blocks are the points of the last two thirds: one block, or one for each daemon's life, or one for each age in sixtieths of the
// soak; one block too if there was one life.
func (b bound) blocks(samples []Sample, length time.Duration) [][]trend.Point {
	blocks := map[int][]trend.Point{}
	several := len(samples) > 0 && samples[0].Life != samples[len(samples)-1].Life
	var start time.Duration
	life := int32(-1)
	for _, s := range samples {
		if s.Life != life {
			start, life = s.At, s.Life
		}
		age := s.At - start
		if s.At < length/3 || b.compare == within && age < min(settled, length/15) {
			continue
		}
		block := 0
		switch {
		case b.compare == ages && several:
			block = int(age / (length / 60))
		case b.compare == within:
			block = int(life)
		}
		blocks[block] = append(blocks[block], trend.Point{Hours: s.At.Hours(), Value: s.Values[b.name]})
	}
	return slices.Collect(maps.Values(blocks))
}

func table(w io.Writer, rows []Row) {
	for _, r := range rows {
		if r.High == nil {
			fmt.Fprintf(w, "  %-42s %12.6g %s\n", r.Name, r.Berth, r.Unit)
			continue
		}
		word := "shown only"
		if r.Flat != nil {
			word = fmt.Sprintf("at most %.6g", *r.Limit)
			word = map[bool]string{true: "✓ ", false: "✗ "}[*r.Flat] + word
		}
		fmt.Fprintf(w, "  %-42s %12.6g %-6s [%.6g, %.6g]  %s\n", r.Name, r.Berth, r.Unit, *r.Low, *r.High, word)
	}
}

func writeJSON(path string, what any) error {
	b, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, append(b, '\n'), 0o644))
}

// round keeps four significant digits; JSON has no NaN.
func round(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// measures are the names of what is judged, each once.
func measures() (names []string) {
	for _, b := range append(bounds(), seen()...) {
		if !slices.Contains(names, b.name) {
			names = append(names, b.name)
		}
	}
	return names
}
