package static

import (
	"slices"
	"testing"
)

// TestUnusable: what one volume more may have is the largest device that is left when those that wait have theirs.
func TestUnusable(t *testing.T) {
	for _, c := range []struct {
		sizes, waiting []int64
		most           int64
	}{
		{nil, nil, 0},
		{nil, []int64{5}, 0},
		{[]int64{10}, nil, 10},
		{[]int64{10, 20, 30}, nil, 30},
		{[]int64{10, 20, 30}, []int64{5}, 30},
		{[]int64{10, 20, 30}, []int64{25}, 20},
		{[]int64{10, 20, 30}, []int64{25, 5}, 20},
		{[]int64{10, 20, 30}, []int64{15, 15}, 10},
		{[]int64{10, 20, 30}, []int64{40}, 30},
		{[]int64{10}, []int64{10}, 0},
	} {
		var sum int64
		for _, n := range c.sizes {
			sum += n
		}
		before := slices.Clone(c.sizes)
		if got := sum - unusable(c.sizes, c.waiting); got != c.most {
			t.Errorf("of %v, with %v waiting, one more may have %d, want %d", c.sizes, c.waiting, got, c.most)
		}
		if !slices.Equal(before, c.sizes) {
			t.Errorf("%v became %v", before, c.sizes)
		}
	}
}
