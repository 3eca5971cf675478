package volume

import (
	"context"

	"github.com/berth-project/berth/proto/errs"
)

// Range is a part of a volume, in bytes.
type Range struct{ At, Length int64 }

// Changed are the ranges of a snapshot that hold data, or, if a base is named, that may differ from it: in order,
// without overlap, from an offset on and within the snapshot's size, which is returned too. Both snapshots must be of
// one volume.
func (m *Manager) Changed(ctx context.Context, base, target string, from int64) (all []Range, size int64, err error) {
	ids := []string{target}
	if base != "" {
		ids = append(ids, base)
	}
	end, err := m.beginAll(ids, "reading what changed")
	if err != nil {
		return nil, 0, err
	}
	defer end()
	s, err := m.Snapshot(target)
	if err != nil {
		return nil, 0, err
	}
	if base != "" {
		b, err := m.Snapshot(base)
		if err != nil {
			return nil, 0, err
		}
		if b.Volume != s.Volume {
			return nil, 0, errs.InvalidArgument.Errorf("base_snapshot_id: %s is of volume %s, %s of %s: want two of one volume", base, b.Volume, target, s.Volume)
		}
	}
	if from < 0 || from > s.Size {
		return nil, 0, errs.OutOfRange.Errorf("starting_offset: %d, the snapshot has %d bytes", from, s.Size)
	}
	p, err := m.pool(s.Pool)
	if err != nil {
		return nil, 0, err
	}
	all, err = p.Backend.Changed(ctx, base, target)
	return cut(all, from, s.Size), s.Size, err
}

// cut is pure: the parts of ranges between two offsets.
func cut(all []Range, from, to int64) []Range {
	var out []Range
	for _, r := range all {
		start, end := max(r.At, from), min(r.At+r.Length, to)
		if start < end {
			out = append(out, Range{start, end - start})
		}
	}
	return out
}
