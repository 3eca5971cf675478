package loop

import (
	"slices"

	"github.com/berth-project/berth/csi/internal/volume"
)

// extent is a range of a file and where its bytes are, in bytes; ranges without an extent are holes and read as zero, as
// does one that was allocated and never written.
type extent struct {
	at, length, physical int64
	zero                 bool // reads as zero
	unknown              bool // it is not said where its bytes are
}

// allocated are the ranges that hold data, in order and without overlap.
func allocated(all []extent) []volume.Range {
	var out []volume.Range
	for _, e := range all {
		if !e.zero {
			out = appendRange(out, volume.Range{At: e.at, Length: e.length})
		}
	}
	return out
}

// changed are the ranges of target that may differ from base. Two files that share a block have the same bytes there:
// a block that two files hold is never written in place.
func changed(base, target []extent) []volume.Range {
	var edges []int64
	for _, e := range slices.Concat(base, target) {
		edges = append(edges, e.at, e.at+e.length)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var out []volume.Range
	b, t := cursor{all: base}, cursor{all: target}
	for i := 0; i+1 < len(edges); i++ {
		at, length := edges[i], edges[i+1]-edges[i]
		if !same(b.at(at), t.at(at), at) {
			out = appendRange(out, volume.Range{At: at, Length: length})
		}
	}
	return out
}

// same says whether two files have the same bytes at a place; nil is a hole.
func same(b, t *extent, at int64) bool {
	bz, tz := b == nil || b.zero, t == nil || t.zero
	if bz || tz {
		return bz && tz
	}
	return !b.unknown && !t.unknown && b.physical+at-b.at == t.physical+at-t.at
}

// cursor finds extents for places that only grow.
type cursor struct {
	all  []extent
	next int
}

func (c *cursor) at(place int64) *extent {
	for c.next < len(c.all) && c.all[c.next].at+c.all[c.next].length <= place {
		c.next++
	}
	if c.next < len(c.all) && c.all[c.next].at <= place {
		return &c.all[c.next]
	}
	return nil
}

func appendRange(all []volume.Range, r volume.Range) []volume.Range {
	if n := len(all); n > 0 && all[n-1].At+all[n-1].Length == r.At {
		all[n-1].Length += r.Length
		return all
	}
	return append(all, r)
}
