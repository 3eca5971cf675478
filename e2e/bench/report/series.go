// Package report turns samples into rows, rows into JSON, a table, verdicts and a picture. It measures nothing.
package report

import (
	"math"
	"slices"
)

// Series are samples of one thing on one side, in the row's unit.
type Series []float64

// Quantile is the q-quantile, interpolated between the two samples around it; NaN of no samples.
func (s Series) Quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low+1 >= len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// P50 is the median.
func (s Series) P50() float64 { return s.Quantile(0.5) }

// P95 is the 0.95-quantile.
func (s Series) P95() float64 { return s.Quantile(0.95) }

// Ratios are those of the samples of two sides that belong together; of unequal many there are none.
func Ratios(a, b Series) Series {
	if len(a) != len(b) {
		return nil
	}
	all := make(Series, len(a))
	for i := range a {
		all[i] = a[i] / b[i]
	}
	return all
}
