package volume

import (
	"context"
	"os"

	"github.com/berth-project/berth/csi/internal/mount"
)

// Spec is what a backend is told of a volume. Everything in it comes from the domain's own record: ids are generated,
// never a user's words.
type Spec struct {
	ID       string
	Number   uint64 // unique on this node for ever; for backends that need a number
	Capacity int64  // bytes, as promised to the user
	Held     int64  // bytes beyond that which snapshots and clones of it may hold and which are charged to it
	Block    bool
	FSType   string            // of a volume with a file system that the backend makes
	Thin     bool              // do not allocate ahead
	Source   Source            // what its first content is; the zero value: nothing
	Shared   bool              // shares storage with a snapshot or a clone
	Fresh    bool              // was never mounted or attached, and started with nothing in it
	Missing  int64             // bytes of Capacity that are being made and may have no storage yet: of a new volume all, of a growing one the difference
	Tuning   map[string]string // settings that may change, checked; what is absent has its default
}

// Source is a volume or a snapshot that another one starts as a copy of.
type Source struct {
	Volume   string `json:"volume,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
}

// None says that there is no source.
func (s Source) None() bool { return s == Source{} }

// SnapshotSpec is what a backend is told of a snapshot.
type SnapshotSpec struct {
	ID     string
	Volume Spec
	// Mounted is the volume's staging mount, nil if it is not mounted: what is in its file system's cache must be
	// in the snapshot.
	Mounted *os.File
	InUse   bool // staged, with a file system or as a device
}

// Traits are what a backend can and cannot do; they never change while the program runs.
type Traits struct {
	Block bool // raw block volumes
	// FSTypes are the file systems a volume may have, the default first. A backend that gives directories of its
	// own file system has one.
	FSTypes []string
	// MinSize and Granularity of a volume, in bytes; the capacity is what was asked for, storage is rounded up.
	MinSize, Granularity int64
	// MinOf is the least size of a volume by its file system, where the backend makes one.
	MinOf map[string]int64
	// LiveSnapshots: a volume in use can be snapshotted.
	LiveSnapshots bool
	// LiveGroups: several volumes in use can be snapshotted at one moment.
	LiveGroups bool
	// Charged: what a snapshot or a clone shares stays charged to the volume it was written in.
	Charged bool
	// NodeGrows: after Resize the mounted file system must be grown too.
	NodeGrows bool
	// NoCopies: there are neither snapshots nor clones.
	NoCopies bool
	// Whole: a volume has storage for itself that may be larger than it, so that growing takes nothing from the pool.
	Whole bool
	// Limited: the limit is not the storage's size but set apart from it, and set anew at each start.
	Limited bool
}

// Space is the state of a pool in bytes and inodes; InodesFree is negative where there is no limit.
type Space struct {
	Total, Free, InodesFree int64
	ReadOnly                bool
	// Unbacked is how many bytes of what was promised to the volumes that were named are not allocated yet, or cannot be. It
	// is looked at before Free, so what is allocated in between counts twice rather than never.
	Unbacked int64
}

// Usage of a mounted volume, in bytes and inodes.
type Usage struct {
	Total, Used, Available          int64
	Inodes, InodesUsed, InodesAvail int64
}

// Store makes and removes the storage of volumes. Every method is idempotent and may be repeated after the program
// was killed at any point of it; Unavailable means that the pool is not there, ResourceExhausted that it is full.
type Store interface {
	// Traits of this pool.
	Traits() Traits
	// Ensure makes the storage of a volume, completely or not at all: what a killed Ensure left is started anew,
	// what is complete is never touched again, whatever it holds. A power cut may undo all of it until Commit.
	// Cost: from 1 ms (a subvolume) to a copy of the source.
	Ensure(ctx context.Context, v Spec) error
	// Commit makes what Ensure made outlive a power cut.
	Commit(ctx context.Context, v Spec) error
	// Exists says whether the volume's storage is there and complete.
	Exists(ctx context.Context, id string) (bool, error)
	// Remove takes the storage out of sight; nothing that is in use is removed, that is FailedPrecondition. The
	// bytes are erased later, by Purge.
	Remove(ctx context.Context, v Spec) error
	// Resize makes the storage as large as v.Capacity says, and its limit v.Capacity and v.Held; the storage never
	// shrinks.
	Resize(ctx context.Context, v Spec) error
	// Footprint is how many bytes of the pool a snapshot of the volume made now could hold by itself.
	Footprint(ctx context.Context, v Spec) (int64, error)
}

// Keeper looks after the pool as a whole.
type Keeper interface {
	// Medium is what the pool takes its space from (a file system, a volume group), known since it was opened; pools with
	// the same one share it. Empty: nothing that another pool could have.
	Medium() string
	// Space asks the pool, whose volumes are all.
	Space(ctx context.Context, all []Spec) (Space, error)
	// Inventory lists the ids of all volumes and snapshots that have storage, also of those that are being made.
	Inventory(ctx context.Context) (volumes, snapshots []string, err error)
	// Purge erases what was removed, in slices, until nothing is left or ctx ends, and says how much is left.
	Purge(ctx context.Context) (left int, err error)
	// Health says what is wrong with the pool; nothing: nil.
	Health(ctx context.Context) []Condition
}

// Attacher brings volumes to this node's mount namespace.
type Attacher interface {
	// Mount is a detached mount of the volume's file system, grown to the volume's size.
	Mount(ctx context.Context, v Spec, readOnly bool) (*os.File, error)
	// Device is the path of the volume's block device, attached if it was not.
	Device(ctx context.Context, v Spec, readOnly bool) (string, error)
	// Holds says whether what is at a path is this volume: its mount, or its device.
	Holds(ctx context.Context, v Spec, p mount.Point) (bool, error)
	// Release ends what Mount or Device began, after the last mount is gone. FailedPrecondition: somebody still
	// uses it.
	Release(ctx context.Context, v Spec) error
	// Grow makes what is mounted at root, or the device if root is nil, as large as the volume is.
	Grow(ctx context.Context, v Spec, root *os.File) error
	// Usage of the volume mounted at root.
	Usage(ctx context.Context, v Spec, root *os.File) (Usage, error)
}

// Tuner changes how a volume behaves while it is used; what it is and how large stays.
type Tuner interface {
	// CheckTuning says InvalidArgument, with the key, of settings that the volume cannot have. It is pure.
	CheckTuning(v Spec) error
	// Tune makes the storage, and what of it is attached, as v.Tuning says. Ensure, Mount and Device do so too.
	Tune(ctx context.Context, v Spec) error
}

// Snapshots makes and removes snapshots.
type Snapshots interface {
	// Snapshot makes one snapshot of each volume, all of the same moment. Complete or not at all; one that is there
	// already stays as it is.
	Snapshot(ctx context.Context, all []SnapshotSpec) error
	// RemoveSnapshot takes a snapshot out of sight.
	RemoveSnapshot(ctx context.Context, id string) error
	// Changed are the ranges of a snapshot's device that hold data, or, if a base of the same volume is named, that may
	// differ from it; in order, without overlap. FailedPrecondition: it is not known here.
	Changed(ctx context.Context, base, target string) ([]Range, error)
	// Thaw undoes what a Snapshot that was killed may have left frozen.
	Thaw(ctx context.Context, mounted *os.File) error
}

// Backend is all that a pool's storage can do. The tests in csi/test are what each must pass.
type Backend interface {
	Store
	Keeper
	Attacher
	Tuner
	Snapshots
}

// Condition is one thing that is wrong, as CSI 1.13 says it.
type Condition struct {
	Reason  string // CamelCase, from a short list
	Message string
	Fatal   bool // unreachable or lost, not only degraded
}
