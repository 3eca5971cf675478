package trend

import (
	"math"
	"math/rand/v2"
	"testing"
)

// series is n points of a line with noise and, every so often, a spike.
func series(r *rand.Rand, n int, slope, noise, spike float64) []Point {
	b := make([]Point, n)
	for i := range b {
		h := float64(i) / float64(n)
		b[i] = Point{h, 100 + slope*h + noise*r.NormFloat64()}
		if i%10 == 3 {
			b[i].Value += spike
		}
	}
	return b
}

// TestKnownSlope is by hand: six pairs, the slopes 1, 3/2, 5/3, 2, 2, 2.
func TestKnownSlope(t *testing.T) {
	got := Fit([]Point{{0, 0}, {1, 2}, {2, 4}, {3, 5}})
	if math.Abs(got.Slope-11.0/6) > 1e-9 || got.Points != 4 || got.Low > got.Slope || got.High < got.Slope {
		t.Errorf("%+v", got)
	}
	if got := Fit([]Point{{0, 7}, {1, 7}, {2, 7}}); got.Slope != 0 || got.Low != 0 || got.High != 0 {
		t.Errorf("a constant: %+v", got)
	}
	if got := Fit([]Point{{0, 7}}, []Point{{1, 9}}); !math.IsNaN(got.Slope) || got.Points != 2 {
		t.Errorf("no two points in a block: %+v", got)
	}
}

// TestSpikes: every tenth sample is far off, and the slope stays what it is.
func TestSpikes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	if got := Fit(series(r, 240, 5, 1, 1000)); math.Abs(got.Slope-5) > 1 {
		t.Errorf("%+v, want 5", got)
	}
}

// TestBlocks: what steps down between blocks hides no growth within them, and makes none.
func TestBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, slope := range []float64{0, 12} {
		var blocks [][]Point
		for k := range 4 {
			b := series(r, 60, slope, 0.5, 0)
			for i := range b {
				b[i].Hours += float64(k)
				b[i].Value -= 30 * float64(k)
			}
			blocks = append(blocks, b)
		}
		if got := Fit(blocks...); math.Abs(got.Slope-slope) > 0.5 || got.Low > slope || got.High < slope {
			t.Errorf("%+v, want %v", got, slope)
		}
	}
}

// TestCoverage: the interval holds the truth about as often as it says.
func TestCoverage(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const runs = 400
	held := 0
	for range runs {
		if got := Fit(series(r, 60, 3, 2, 0)); got.Low <= 3 && 3 <= got.High {
			held++
		}
	}
	if held < runs*91/100 || held > runs*99/100 {
		t.Errorf("the 95 %% interval held the slope in %d of %d runs", held, runs)
	}
}
