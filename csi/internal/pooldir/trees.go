package pooldir

import (
	"context"
	"errors"
	"os"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Trees are volumes and snapshots that are directories of the pool's file system, volumes/ID and snapshots/ID, and are
// attached by a bind mount. It is the part of a backend that is the same whatever kind of directory they are.
type Trees struct {
	Pool   *pool.Pool
	FSType string // of the pool
	Kind   string // what one of them is called: directory, subvolume
}

// Path is the name of a volume or a snapshot in one of the pool's directories.
func Path(dir, id string) string { return dir + "/" + id }

// Source is the name of what a volume starts as a copy of.
func Source(s volume.Source) string {
	if s.Volume != "" {
		return Path(pool.Volumes, s.Volume)
	}
	return Path(pool.Snapshots, s.Snapshot)
}

// Open opens the pool and a complete volume; both are to be closed. One that is missing is an Internal error that says
// so, because the domain's record says that it is there.
func (t *Trees) Open(id string) (*pool.Dir, *os.File, error) {
	d, err := t.Pool.Dir()
	if err != nil {
		return nil, nil, err
	}
	f, err := d.Sub(Path(pool.Volumes, id))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errs.Internal.Errorf("the %s of volume %s is gone from the pool at %s: its data is lost; delete the volume: %w", t.Kind, id, t.Pool.Path(), err)
		}
		return nil, nil, errors.Join(err, d.Close())
	}
	return d, f, nil
}

// Exists implements volume.Store.
func (t *Trees) Exists(_ context.Context, id string) (bool, error) {
	d, err := t.Pool.Dir()
	if err != nil {
		return false, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	return d.Exists(Path(pool.Volumes, id))
}

// Inventory implements volume.Keeper.
func (t *Trees) Inventory(context.Context) (volumes, snapshots []string, err error) {
	return Inventory(t.Pool, "")
}

// Mount implements volume.Attacher.
func (t *Trees) Mount(_ context.Context, v volume.Spec, _ bool) (*os.File, error) {
	d, f, err := t.Open(v.ID)
	if err != nil {
		return nil, err
	}
	tree, err := mount.Clone(f, "")
	return tree, errors.Join(err, f.Close(), d.Close())
}

// Device implements volume.Attacher.
func (t *Trees) Device(_ context.Context, v volume.Spec, _ bool) (string, error) {
	return "", errs.InvalidArgument.Errorf("volume %s is a %s and no block device", v.ID, t.Kind)
}

// Holds implements volume.Attacher. A mount and its source are the same inode of the same device number (stat(2)), of
// which a subvolume has one of its own.
func (t *Trees) Holds(_ context.Context, v volume.Spec, p mount.Point) (bool, error) {
	d, f, err := t.Open(v.ID)
	if err != nil {
		return false, err
	}
	at, err := mount.At(f)
	return err == nil && at.Same(p), errors.Join(err, f.Close(), d.Close())
}

// Release implements volume.Attacher: there is nothing to detach, but somebody may still have it mounted.
func (t *Trees) Release(_ context.Context, v volume.Spec) error {
	d, err := t.Pool.Dir() // of a pool that is not there nobody knows
	if err != nil {
		return err
	}
	point, err := mount.Within(t.FSType, pool.Volumes, v.ID)
	if err == nil && point != "" {
		err = errs.FailedPrecondition.Errorf("volume %s is still mounted at %s, here or in another mount namespace: end what uses it", v.ID, point)
	}
	return errors.Join(err, d.Close())
}

// Grow implements volume.Attacher: a limit is all there is, and Resize has set it.
func (t *Trees) Grow(context.Context, volume.Spec, *os.File) error { return nil }

// Changed implements volume.Snapshots: there is no device whose blocks could be counted.
func (t *Trees) Changed(context.Context, string, string) ([]volume.Range, error) {
	return nil, errs.FailedPrecondition.Errorf("the pool at %s has a %s for each volume, which has no blocks: changed blocks are those of the loop backend", t.Pool.Path(), t.Kind)
}

// Thaw implements volume.Snapshots: nothing is ever frozen.
func (t *Trees) Thaw(context.Context, *os.File) error { return nil }
