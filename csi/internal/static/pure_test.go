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

// TestDistinct: a device that is named twice is one device, and the path that has its record stays.
func TestDistinct(t *testing.T) {
	at := func(path string, number uint64, identity string) disk {
		return disk{path: path, number: number, size: 10, identity: identity}
	}
	taken := func(all ...record) map[string]record {
		m := map[string]record{}
		for _, r := range all {
			m[r.Device] = r
		}
		return m
	}
	for _, c := range []struct {
		what string
		all  []disk
		used map[string]record
		want []string
	}{
		{"two devices", []disk{at("/a", 1, "x"), at("/b", 2, "y")}, nil, []string{"/a", "/b"}},
		{"one twice", []disk{at("/a", 1, "x"), at("/b", 1, "x")}, nil, []string{"/a"}},
		{"one twice, the second has the record", []disk{at("/a", 1, ""), at("/b", 1, "")}, taken(record{Device: "/b", Size: 10}), []string{"/b"}},
		{"its record is of a path that is named no more", []disk{at("/b", 1, "x")}, taken(record{Device: "/a", Size: 10, Identity: "x"}), nil},
		{"another one without identity", []disk{at("/b", 1, "")}, taken(record{Device: "/a", Size: 10}), []string{"/b"}},
	} {
		b := &Backend{refused: map[string]string{}}
		var got []string
		for _, k := range b.distinct(c.all, c.used) {
			got = append(got, k.path)
		}
		if !slices.Equal(got, c.want) || len(b.refused) != len(c.all)-len(c.want) {
			t.Errorf("%s: %v, refused %v, want %v", c.what, got, b.refused, c.want)
		}
	}
}
