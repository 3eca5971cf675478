package btrfs

import (
	"context"
	"os"

	"github.com/berth-project/berth/csi/internal/volume"
)

// Usage implements volume.Attacher. What snapshots hold is charged to the volume too, and is not its user's.
func (b *Backend) Usage(_ context.Context, v volume.Spec, _ *os.File) (volume.Usage, error) {
	n, err := b.charged(v.Number)
	if err != nil {
		return volume.Usage{}, err
	}
	used := max(0, min(n, v.Capacity))
	return volume.Usage{Total: v.Capacity, Used: used, Available: max(0, v.Capacity+v.Held-n)}, nil
}
