// Package trend fits a straight line through samples so that neither a spike nor a restart bends it: the slope is the
// median of the slopes between all pairs of points (Theil 1950, Sen 1968), with Sen's confidence interval.
//
// Points may come in blocks, such as the lives of a daemon: then only pairs within one block count. What differs between
// blocks, a new process that starts small, says nothing, and what grows within each of them adds up.
package trend

import (
	"math"
	"slices"
)

// Point is one sample: when, in hours, and what.
type Point struct{ Hours, Value float64 }

// Line is a slope per hour and the ends of its 95 % confidence interval. Samples near each other in time resemble each
// other, which the interval does not know: it is a little too narrow.
type Line struct {
	Slope, Low, High float64
	Points           int
}

// z95 is the 0.975-quantile of the normal distribution.
const z95 = 1.959964

// Fit is the line through the blocks' points. Without two points in one block there is none, and every number is NaN.
func Fit(blocks ...[]Point) Line {
	var slopes []float64
	var spread float64 // the variance of Kendall's S under no trend, tied values counted off
	line := Line{Slope: math.NaN(), Low: math.NaN(), High: math.NaN()}
	for _, b := range blocks {
		line.Points += len(b)
		slopes = append(slopes, pairs(b)...)
		spread += variance(b)
	}
	if len(slopes) == 0 {
		return line
	}
	slices.Sort(slopes)
	half := z95 * math.Sqrt(spread) / 2
	mid := float64(len(slopes)) / 2
	line.Slope = at(slopes, mid-0.5)
	line.Low, line.High = at(slopes, mid-half-1), at(slopes, mid+half)
	return line
}

func pairs(b []Point) (slopes []float64) {
	for i := range b {
		for j := i + 1; j < len(b); j++ {
			if d := b[j].Hours - b[i].Hours; d > 0 {
				slopes = append(slopes, (b[j].Value-b[i].Value)/d)
			}
		}
	}
	return slopes
}

// variance is Kendall's: n(n-1)(2n+5)/18, less the same of each group of t equal values.
func variance(b []Point) float64 {
	kendall := func(n float64) float64 { return n * (n - 1) * (2*n + 5) / 18 }
	ties := map[float64]float64{}
	for _, p := range b {
		ties[p.Value]++
	}
	v := kendall(float64(len(b)))
	for _, t := range ties {
		v -= kendall(t)
	}
	return v
}

// at is the value at a rank from 0, between two of them if it is no whole number.
func at(sorted []float64, rank float64) float64 {
	rank = min(max(rank, 0), float64(len(sorted)-1))
	low := int(rank)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (rank-float64(low))*(sorted[high]-sorted[low])
}
