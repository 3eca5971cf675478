package dir

import (
	"context"

	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/pooldir"
	"github.com/berth-project/berth/csi/internal/tree"
	"github.com/berth-project/berth/csi/internal/volume"
)

// Medium implements volume.Keeper.
func (b *Backend) Medium() string { return b.medium }

// Space implements volume.Keeper.
func (b *Backend) Space(_ context.Context, all []volume.Spec) (volume.Space, error) {
	return pooldir.Space(b.pool, func(d *pool.Dir) (int64, error) { return b.unbacked(d, all) })
}

// unbacked is volume.Space's.
func (b *Backend) unbacked(d *pool.Dir, all []volume.Spec) (int64, error) {
	f, err := d.Sub(pool.Volumes)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	var sum int64
	for _, v := range all {
		n, _, err := charged(f, project(v.Number))
		if err != nil {
			return 0, named(v, err)
		}
		sum += max(0, v.Capacity+v.Held-n)
	}
	return sum, nil
}

// Purge implements volume.Keeper.
func (b *Backend) Purge(ctx context.Context) (left int, err error) {
	d, err := b.pool.Dir()
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	trash, err := d.Sub(pool.Trash)
	if err != nil {
		return 0, err
	}
	return tree.Empty(ctx, trash)
}

// Health implements volume.Keeper.
func (b *Backend) Health(ctx context.Context) []volume.Condition {
	s, err := b.Space(ctx, nil)
	if all := pooldir.Unwell(b.pool, s, err); all != nil {
		return all
	}
	if _, err := b.Space(ctx, []volume.Spec{{}}); err != nil {
		return []volume.Condition{{Reason: "QuotaOff", Message: "the project quota of the pool at " + b.pool.Path() + " was switched off, volumes have no limit: " + err.Error()}}
	}
	return nil
}
