package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

// Row is one figure of both sides; Ratio is Berth divided by Peer.
type Row struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Berth float64 `json:"berth"`
	Peer  float64 `json:"peer"`
	Ratio float64 `json:"ratio"`
}

// Report is what a run found, in the order it is shown.
type Report struct{ Rows []Row }

// Add appends a row. A figure that is not a number is left out of the report, as JSON has none.
func (r *Report) Add(name, unit string, berth, peer float64) {
	if bad(berth) || bad(peer) || peer == 0 {
		return
	}
	r.Rows = append(r.Rows, Row{Name: name, Unit: unit, Berth: round(berth), Peer: round(peer), Ratio: round(berth / peer)})
}

// AddQuantiles appends NAME_p50 and NAME_p95.
func (r *Report) AddQuantiles(name, unit string, berth, peer Series) {
	r.Add(name+"_p50", unit, berth.P50(), peer.P50())
	r.Add(name+"_p95", unit, berth.P95(), peer.P95())
}

// AddPaired appends the medians of samples that were taken in pairs, and as the ratio the median of the pairs' ratios:
// what slows the machine for a while slows both of a pair.
func (r *Report) AddPaired(name, unit string, berth, peer Series) {
	ratio := Ratios(berth, peer).P50()
	if bad(ratio) {
		return
	}
	r.Rows = append(r.Rows, Row{Name: name, Unit: unit, Berth: round(berth.P50()), Peer: round(peer.P50()), Ratio: round(ratio)})
}

// Find is the row of that name.
func (r *Report) Find(name string) (Row, bool) {
	for _, row := range r.Rows {
		if row.Name == name {
			return row, true
		}
	}
	return Row{}, false
}

func bad(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }

// round keeps four significant digits.
func round(v float64) float64 {
	if v == 0 || bad(v) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// AddJSON appends the rows of another benchmark's file.
func (r *Report) AddJSON(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var rows []Row
	if err := json.Unmarshal(b, &rows); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.Rows = append(r.Rows, rows...)
	return nil
}

// WriteJSON writes the rows as a list, by rename.
func (r *Report) WriteJSON(path string) error {
	b, err := json.MarshalIndent(r.Rows, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

func writeFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Print writes the table.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, "  %-38s %12s %12s  %-7s %10s\n", "", "berth", "peer", "", "berth/peer")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "  %-38s %12s %12s  %-7s %10s\n", row.Name, number(row.Berth), number(row.Peer), row.Unit, number(row.Ratio))
	}
}

// number is short and never in exponents.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000:
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.1f", v)
	case a >= 1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.4f", v)
	}
}
