package loop

import (
	"slices"
	"testing"

	"github.com/berth-project/berth/csi/internal/volume"
)

// TestChanged: what of a file may differ from another, by where their bytes are.
func TestChanged(t *testing.T) {
	data := func(at, length, physical int64) extent { return extent{at: at, length: length, physical: physical} }
	zero := func(at, length int64) extent { return extent{at: at, length: length, physical: 1 << 40, zero: true} }
	r := func(at, length int64) volume.Range { return volume.Range{At: at, Length: length} }
	for _, c := range []struct {
		name         string
		base, target []extent
		want         []volume.Range
	}{
		{"nothing", nil, nil, nil},
		{"the same", []extent{data(0, 100, 1000)}, []extent{data(0, 100, 1000)}, nil},
		{"the same in other pieces", []extent{data(0, 100, 1000)}, []extent{data(0, 40, 1000), data(40, 60, 1040)}, nil},
		{"the middle written anew", []extent{data(0, 100, 1000)}, []extent{data(0, 40, 1000), data(40, 20, 5000), data(60, 40, 1060)}, []volume.Range{r(40, 20)}},
		{"written where nothing was", []extent{data(0, 10, 1000)}, []extent{data(0, 10, 1000), data(50, 10, 7000)}, []volume.Range{r(50, 10)}},
		{"discarded", []extent{data(0, 10, 1000), data(50, 10, 7000)}, []extent{data(0, 10, 1000)}, []volume.Range{r(50, 10)}},
		{"never written is a hole", []extent{zero(0, 100)}, nil, nil},
		{"written where it was allocated", []extent{zero(0, 100)}, []extent{zero(0, 20), data(20, 30, 9000), zero(50, 50)}, []volume.Range{r(20, 30)}},
		{"neighbours are one range", nil, []extent{data(0, 10, 1), data(10, 10, 500)}, []volume.Range{r(0, 20)}},
		{"nobody knows where", []extent{{at: 0, length: 10, unknown: true}}, []extent{{at: 0, length: 10, unknown: true}}, []volume.Range{r(0, 10)}},
		{"moved", []extent{data(0, 10, 1000)}, []extent{data(10, 10, 1000)}, []volume.Range{r(0, 20)}},
	} {
		if got := changed(c.base, c.target); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if got := allocated([]extent{zero(0, 10), data(10, 10, 5), data(20, 5, 99), zero(25, 5)}); !slices.Equal(got, []volume.Range{r(10, 15)}) {
		t.Errorf("allocated: %v", got)
	}
}
