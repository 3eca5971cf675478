// Package static is the backend whose volumes are whole disks or partitions that the operator names: one device, one
// volume. A volume gets the smallest device that it fits on. One with a file system is as large as was asked for, and
// may grow up to its device; a raw one is the device. There are no snapshots and no clones.
//
// Which device is whose, the pool's directory says, in one record for each:
//
//	blank/KEY      a device that is zero from its first to its last byte, because we have made it so
//	building/ID    one that is being made a volume
//	volumes/ID     a volume
//	trash/…        one that is being erased, and how far that is
//
//	named by the operator ──edges zero──▶ trash ──erased──▶ blank ──Ensure──▶ building ─▶ volumes
//	       └─ anything else: refused         ▲                                              │ Remove
//	                                         └──────────────────────────────────────────────┘
//
// A device with anything but zero in its first or last MiB that is in none of these records, or that is in use, is
// refused and named, and never written to. What a device is, is its size and what the kernel calls its identity (serial
// number, WWID, partition's UUID): a volume is not looked for on another device at the same path.
package static

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	afterClaim   = failpoint.New("csi.static.after_claim")
	afterFormat  = failpoint.New("csi.static.after_format")
	beforeRename = failpoint.New("csi.static.before_rename")
	afterRename  = failpoint.New("csi.static.after_rename")
	afterTrash   = failpoint.New("csi.static.after_trash")
	afterSlice   = failpoint.New("csi.static.after_slice")
	afterErase   = failpoint.New("csi.static.after_erase")
	afterBlank   = failpoint.New("csi.static.after_blank")
)

const blank = "blank"

// Backend is one pool of devices. Use [New].
type Backend struct {
	pool    *pool.Pool
	named   []string
	fstypes []string

	// claiming is held from the question which device is free to the record that takes it.
	claiming sync.Mutex

	mu      sync.Mutex
	refused map[string]string // path: why it is not taken
}

var _ volume.Backend = (*Backend)(nil)

// New looks at the devices: paths of devices, best links that stay the same, or directories of such links. One device
// under two names is InvalidArgument. What is on them is looked at when the first Purge takes them in.
func New(p *pool.Pool, named []string) (*Backend, error) {
	types, err := mkfs.Available("static")
	if err != nil {
		return nil, err
	}
	b := &Backend{pool: p, named: slices.Clone(named), fstypes: types, refused: map[string]string{}}
	d, err := p.Dir()
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	if err := unix.Mkdirat(d.Fd(), blank, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, &os.PathError{Op: "mkdir", Path: blank, Err: err}
	}
	all, err := b.disks()
	if err != nil {
		return nil, err
	}
	seen := map[uint64]string{}
	for _, k := range all {
		if other := seen[k.number]; other != "" {
			return nil, errs.InvalidArgument.Errorf("devices: %s and %s are the same device", other, k.path)
		}
		seen[k.number] = k.path
	}
	return b, nil
}

// Traits implements volume.Store.
func (b *Backend) Traits() volume.Traits {
	return volume.Traits{
		Block: true, FSTypes: slices.Clone(b.fstypes), MinSize: 1 << 20, Granularity: blockfs.BlockSize,
		NodeGrows: true, MinOf: mkfs.MinSizes(b.fstypes), NoCopies: true, Whole: true,
	}
}

// Commit implements volume.Store: Ensure has synced the device and the record.
func (b *Backend) Commit(context.Context, volume.Spec) error { return nil }

// Exists implements volume.Store. A device that is not there now is Unavailable.
func (b *Backend) Exists(_ context.Context, id string) (bool, error) {
	d, err := b.pool.Dir()
	if err != nil {
		return false, err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	r, found, err := read(d, pool.Volumes+"/"+id)
	if err != nil || !found {
		return false, err
	}
	_, err = r.disk()
	return err == nil, err
}

// Tune implements volume.Tuner.
func (b *Backend) Tune(context.Context, volume.Spec) error { return nil }

// CheckTuning implements volume.Tuner: there is nothing to set.
func (b *Backend) CheckTuning(v volume.Spec) error {
	for k := range v.Tuning {
		return errs.InvalidArgument.Errorf("mutable_parameters.%s is not known here: a pool of devices has no settings", k)
	}
	return nil
}

// Resize implements volume.Store: a volume is as large as its device at most.
func (b *Backend) Resize(_ context.Context, v volume.Spec) error {
	k, err := b.of(v.ID)
	if err == nil && v.Capacity > k.size {
		err = errs.OutOfRange.Errorf("capacity_range: volume %s is on %s, which has %d bytes: it cannot grow beyond its device", v.ID, k.path, k.size)
	}
	return err
}

// Footprint implements volume.Store; there are no snapshots, so it is never asked for one.
func (b *Backend) Footprint(context.Context, volume.Spec) (int64, error) { return 0, noCopies() }

// Snapshot implements volume.Snapshots.
func (b *Backend) Snapshot(context.Context, []volume.SnapshotSpec) error { return noCopies() }

// RemoveSnapshot implements volume.Snapshots: there is never one.
func (b *Backend) RemoveSnapshot(context.Context, string) error { return nil }

// Changed implements volume.Snapshots.
func (b *Backend) Changed(context.Context, string, string) ([]volume.Range, error) {
	return nil, noCopies()
}

// Thaw implements volume.Snapshots: nothing is ever frozen.
func (b *Backend) Thaw(context.Context, *os.File) error { return nil }

func noCopies() error {
	return errs.FailedPrecondition.Errorf("a pool of devices has no snapshots and no clones")
}
