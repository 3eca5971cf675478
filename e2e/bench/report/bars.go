package report

import (
	"fmt"
	"io"
	"strings"
)

// Bar is what a row's ratio must keep to: at most Limit, or at least if AtLeast.
type Bar struct {
	Name    string
	Limit   float64
	AtLeast bool
}

// Bars are the project's.
func Bars() []Bar {
	return []Bar{
		{Name: "run_pod_sandbox_p50", Limit: 0.10},
		{Name: "create_start_p50", Limit: 0.12},
		{Name: "exec_sync_p50", Limit: 0.10},
		{Name: "stop_container_p50", Limit: 0.10},
		{Name: "stop_pod_sandbox_p50", Limit: 0.08},
		{Name: "burst_100_pods_per_s", Limit: 8, AtLeast: true},
		{Name: "pss_per_pod", Limit: 0.025},
		{Name: "daemon_pss", Limit: 0.5},
		{Name: "pull_128MiB_p50", Limit: 0.6},
	}
}

// BarsUnder are those of [Bars] that are about pods, for the rows of a condition: the prefix is its rows'.
func BarsUnder(prefix string) (bars []Bar) {
	for _, b := range Bars() {
		if !strings.HasPrefix(b.Name, "pull_") {
			b.Name = prefix + b.Name
			bars = append(bars, b)
		}
	}
	return bars
}

// Holds says whether a ratio keeps to the bar.
func (b Bar) Holds(ratio float64) bool {
	if b.AtLeast {
		return ratio >= b.Limit
	}
	return ratio <= b.Limit
}

// PrintBars writes which bars hold and returns how many do not; one without a row does not.
func (r *Report) PrintBars(w io.Writer, bars []Bar) int {
	missed := 0
	for _, b := range bars {
		sign, word := "✗", "at most"
		if b.AtLeast {
			word = "at least"
		}
		row, ok := r.Find(b.Name)
		said := "not measured"
		if ok {
			said = number(row.Ratio)
		}
		if ok && b.Holds(row.Ratio) {
			sign = "✓"
		} else {
			missed++
		}
		fmt.Fprintf(w, "  %s %-34s %10s  (%s %.3g)\n", sign, b.Name, said, word, b.Limit)
	}
	return missed
}
