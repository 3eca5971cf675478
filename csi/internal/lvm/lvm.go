// Package lvm is the backend whose volumes are logical volumes of a volume group that the operator has made: linear ones
// (thick), or thin ones of a thin pool in it. The limit of a volume is its size, which no tenant can leave.
//
//	berth-vID          a volume
//	berth-sID          a snapshot
//	berth-b-ID         what is being made; renamed when it is complete
//	berth-x-ID-TIME    trash, to be erased
//
// All of ours carry the tag "berth.csi/POOL" from the command on that makes them, and what has not that tag is never
// touched, whatever it is called. Renaming is one commit of LVM's metadata, so the name is the state.
//
// Bytes of others: a thin pool must zero what it hands out, and one that does not is refused. A thick volume is erased
// when it is deleted, before its extents are free again; and as the group's free extents may hold what others have left
// there, the blocks of a raw volume are made zero before anybody sees them, also those by which it grows. A file system
// on a thick volume does not show what was not written by it.
package lvm

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/mkfs"
	"github.com/berth-project/berth/csi/internal/volgroup"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	afterCreate   = failpoint.New("csi.lvm.after_create")
	beforeRename  = failpoint.New("csi.lvm.before_rename")
	afterRename   = failpoint.New("csi.lvm.after_rename")
	afterActivate = failpoint.New("csi.lvm.after_activate")
	afterExtend   = failpoint.New("csi.lvm.after_extend")
	afterTrash    = failpoint.New("csi.lvm.after_trash")
	afterErase    = failpoint.New("csi.lvm.after_erase")
	afterFreeze   = failpoint.New("csi.lvm.after_freeze")
	afterSnapshot = failpoint.New("csi.lvm.after_snapshot")
)

// Pool is what the operator has made.
type Pool struct {
	Name    string // of the pool, as volumes are tagged
	Program string // LVM's, by its absolute path
	Group   string
	Thin    string // the thin pool; "": volumes are thick
	Known   string // the identity that it had before, or ""
}

// Backend is one pool of logical volumes. Use [New].
type Backend struct {
	group    *volgroup.Group
	thin     string
	tag, id  string
	fstypes  []string
	extent   int64
	growing  sync.Mutex // held while extents are free that have just been made zero
	asking   sync.Mutex // held while LVM is asked for recent
	mu       sync.Mutex
	last     volgroup.Report
	lastTime time.Time // of last; zero: it is not as it is any more
	changes  int64     // of the group, when last was made
}

var _ volume.Backend = (*Backend)(nil)

// New proves that the group, and the thin pool, is there and can keep what is promised; else it says what is missing.
func New(ctx context.Context, p Pool) (*Backend, error) {
	g, err := volgroup.New(p.Program, p.Group)
	if err != nil {
		return nil, err
	}
	types, err := mkfs.Available("lvm")
	if err != nil {
		return nil, err
	}
	b := &Backend{group: g, thin: p.Thin, tag: "berth.csi/" + p.Name, fstypes: types}
	r, err := b.fresh(ctx)
	if err != nil {
		return nil, err
	}
	b.id, b.extent = r.UUID, r.Extent
	if p.Thin != "" {
		t, err := thinPool(r, p)
		if err != nil {
			return nil, err
		}
		b.id += "/" + t.UUID
	}
	if p.Known != "" && p.Known != b.id {
		return nil, errs.Unavailable.Errorf("volume group %s is another one (%s, not %s): attach its disks", p.Group, b.id, p.Known)
	}
	return b, nil
}

// thinPool finds the thin pool and refuses one that would show old blocks.
func thinPool(r volgroup.Report, p Pool) (volgroup.Volume, error) {
	t, found := r.Volume(p.Thin)
	if !found {
		return t, errs.Unavailable.Errorf("thin pool %s/%s is not there: make it, or name the right one", p.Group, p.Thin)
	}
	if !slices.Contains(t.Layout, "thin") || !slices.Contains(t.Layout, "pool") {
		return t, errs.FailedPrecondition.Errorf("thin_pool: %s/%s is no thin pool (%s)", p.Group, p.Thin, strings.Join(t.Layout, ","))
	}
	if !t.Zeroing {
		return t, errs.FailedPrecondition.Errorf("thin pool %s/%s does not zero its blocks, so a volume would show what another one held: lvchange --zero y %s/%s", p.Group, p.Thin, p.Group, p.Thin)
	}
	return t, nil
}

// ID is the identity of the group and of the thin pool, by which another one of the same name is told.
func (b *Backend) ID() string { return b.id }

// fresh asks LVM now.
func (b *Backend) fresh(ctx context.Context) (volgroup.Report, error) {
	start, changes := time.Now(), b.group.Changes()
	r, err := b.report(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last, b.lastTime, b.changes = r, start, changes
	if err != nil {
		b.lastTime = time.Time{}
	}
	return r, err
}

func (b *Backend) report(ctx context.Context) (volgroup.Report, error) {
	r, err := b.group.Report(ctx)
	if err != nil {
		return r, err
	}
	if id, _, _ := strings.Cut(b.id, "/"); id != "" && id != r.UUID {
		return r, errs.Unavailable.Errorf("volume group %s is another one (%s, not %s): attach its disks", b.group.Name(), r.UUID, id)
	}
	if !r.Whole {
		return r, errs.Unavailable.Errorf("volume group %s misses a disk: attach its disks", b.group.Name())
	}
	return r, nil
}

// recent is a report that may be a second old. What was made since is not in it and not taken from what it has free,
// so that a sum over both is right; what was removed makes it void.
func (b *Backend) recent(ctx context.Context) (volgroup.Report, error) {
	b.asking.Lock() // one asks, all who wait get its answer
	defer b.asking.Unlock()
	b.mu.Lock()
	r, at := b.last, b.lastTime
	b.mu.Unlock()
	if time.Since(at) < time.Second {
		return r, nil
	}
	return b.fresh(ctx)
}

// current is a report since which this process has changed nothing, and that is no older than a second.
func (b *Backend) current(ctx context.Context) (volgroup.Report, error) {
	b.mu.Lock()
	r, at, changes := b.last, b.lastTime, b.changes
	b.mu.Unlock()
	if time.Since(at) < time.Second && changes == b.group.Changes() {
		return r, nil
	}
	return b.fresh(ctx)
}

func (b *Backend) void() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastTime = time.Time{}
}

const (
	prefix         = "berth-"
	buildingPrefix = prefix + "b-"
	trashPrefix    = prefix + "x-"
)

func complete(id string) string { return prefix + id }
func building(id string) string { return buildingPrefix + id }

// own finds a volume of ours; one of that name that is not ours is FailedPrecondition.
func (b *Backend) own(r volgroup.Report, name string) (v volgroup.Volume, found bool, err error) {
	v, found = r.Volume(name)
	if found && !slices.Contains(v.Tags, b.tag) {
		return v, false, errs.FailedPrecondition.Errorf("%s/%s has not the tag %s, so it was not made for this pool, and is left alone: rename it", b.group.Name(), name, b.tag)
	}
	return v, found, nil
}

// ours are all of ours.
func (b *Backend) ours(r volgroup.Report) (all []volgroup.Volume) {
	for _, v := range r.Volumes {
		if slices.Contains(v.Tags, b.tag) && strings.HasPrefix(v.Name, prefix) {
			all = append(all, v)
		}
	}
	return all
}

// Traits implements volume.Store.
func (b *Backend) Traits() volume.Traits {
	return volume.Traits{
		Block: true, FSTypes: slices.Clone(b.fstypes), MinSize: max(b.extent, 1<<20), Granularity: blockfs.BlockSize,
		LiveSnapshots: b.thin != "", LiveGroups: b.thin != "", NodeGrows: true, MinOf: mkfs.MinSizes(b.fstypes),
	}
}

// Commit implements volume.Store: Ensure has synced the device, and LVM its metadata.
func (b *Backend) Commit(context.Context, volume.Spec) error { return nil }

// Exists implements volume.Store.
func (b *Backend) Exists(ctx context.Context, id string) (bool, error) {
	r, err := b.recent(ctx)
	if err != nil {
		return false, err
	}
	_, found, err := b.own(r, complete(id))
	if !found && err == nil { // it may be younger
		if r, err = b.fresh(ctx); err == nil {
			_, found, err = b.own(r, complete(id))
		}
	}
	return found, err
}

// Tune implements volume.Tuner.
func (b *Backend) Tune(context.Context, volume.Spec) error { return nil }

// CheckTuning implements volume.Tuner: there is nothing to set.
func (b *Backend) CheckTuning(v volume.Spec) error {
	for k := range v.Tuning {
		return errs.InvalidArgument.Errorf("mutable_parameters.%s is not known here: a pool of logical volumes has no settings", k)
	}
	return nil
}
