package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth/csi/internal/volgroup"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// The watermarks of a thin pool: from warn on it is degraded; from full on its metadata takes no new volume. A thin pool
// whose metadata runs out goes read-only with all that is in it, so the last of it is kept for what is there already.
const (
	warn         = 0.80
	metadataFull = 0.92
)

// Space implements volume.Keeper. Of the size of the group, or of the thin pool, what others have in it is not ours.
func (b *Backend) Space(ctx context.Context, all []volume.Spec) (volume.Space, error) {
	r, err := b.recent(ctx)
	if err != nil {
		return volume.Space{}, err
	}
	s, err := b.space(r)
	s.Unbacked = b.unbacked(r, all)
	return s, err
}

// Medium implements volume.Keeper. A thin pool has its space from the group once and for all.
func (b *Backend) Medium() string { return "lvm " + b.group.Name() + "/" + b.thin }

func (b *Backend) space(r volgroup.Report) (volume.Space, error) {
	s := volume.Space{InodesFree: -1, ReadOnly: !r.Writable}
	if b.thin == "" {
		s.Total, s.Free = r.Free, r.Free
		for _, v := range b.ours(r) {
			s.Total += v.Size
		}
		return s, nil
	}
	t, found := r.Volume(b.thin)
	if !found {
		return s, errs.Unavailable.Errorf("thin pool %s/%s is not there", b.group.Name(), b.thin)
	}
	s.Total = t.Size
	for _, v := range r.Volumes { // others' may grow to their size
		if v.Pool == b.thin && !slices.Contains(v.Tags, b.tag) {
			s.Total -= v.Size
		}
	}
	s.Total = max(0, s.Total)
	s.Free = max(0, s.Total-used(t))
	return s, nil
}

func used(t volgroup.Volume) int64 { return int64(t.Data * float64(t.Size)) }

// unbacked is volume.Space's. A thick volume has all it was promised from the moment it is made. Thin ones have together what
// the pool has given away; which of them shares a block with a snapshot is not told.
func (b *Backend) unbacked(r volgroup.Report, all []volume.Spec) int64 {
	have := map[string]int64{}
	for _, v := range b.ours(r) {
		have[v.Name] = v.Size
	}
	var sum int64
	for _, v := range all {
		if b.thin == "" {
			sum += max(0, r.RoundUp(v.Capacity)-max(have[complete(v.ID)], have[building(v.ID)]))
		} else {
			sum += r.RoundUp(v.Capacity)
		}
	}
	for name, size := range have { // orphans may grow into the thin pool as well
		if b.thin != "" && strings.HasPrefix(name, complete("v")) && !slices.ContainsFunc(all, func(v volume.Spec) bool { return complete(v.ID) == name }) {
			sum += size
		}
	}
	if t, found := r.Volume(b.thin); b.thin != "" && found {
		sum = max(0, sum-used(t))
	}
	return sum
}

// roomForMetadata says ResourceExhausted if the thin pool's metadata is nearly full.
func (b *Backend) roomForMetadata(r volgroup.Report) error {
	if t, found := r.Volume(b.thin); b.thin != "" && found && t.Metadata >= metadataFull {
		return errs.ResourceExhausted.Errorf("the metadata of thin pool %s/%s is %.0f %% full, it takes no new volume: lvextend --poolmetadatasize +1g %s/%s",
			b.group.Name(), b.thin, t.Metadata*100, b.group.Name(), b.thin)
	}
	return nil
}

// Inventory implements volume.Keeper.
func (b *Backend) Inventory(ctx context.Context) (volumes, snapshots []string, err error) {
	r, err := b.fresh(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range b.ours(r) {
		id := strings.TrimPrefix(strings.TrimPrefix(v.Name, buildingPrefix), prefix)
		switch {
		case strings.HasPrefix(v.Name, trashPrefix):
		case strings.HasPrefix(id, "s"):
			snapshots = append(snapshots, id)
		default:
			volumes = append(volumes, id)
		}
	}
	return volumes, snapshots, nil
}

// Purge implements volume.Keeper. What somebody still has open is left for the next time.
func (b *Backend) Purge(ctx context.Context) (left int, err error) {
	r, err := b.fresh(ctx)
	if err != nil {
		return 0, err
	}
	defer b.void()
	for _, v := range b.ours(r) {
		if !strings.HasPrefix(v.Name, trashPrefix) {
			continue
		}
		if ctx.Err() != nil {
			left++
			continue
		}
		if perr := b.purge(ctx, v); perr != nil {
			left++
			err = errors.Join(err, perr)
		}
	}
	return left, err
}

func (b *Backend) purge(ctx context.Context, v volgroup.Volume) error {
	if b.thin == "" {
		if err := b.erase(ctx, v); err != nil {
			return err
		}
	}
	if err := b.group.Deactivate(ctx, v.Name); err != nil {
		return err
	}
	b.growing.Lock()
	defer b.growing.Unlock()
	return b.group.Remove(ctx, v.Name)
}

// Health implements volume.Keeper.
func (b *Backend) Health(ctx context.Context) (all []volume.Condition) {
	say := func(fatal bool, reason, format string, args ...any) {
		all = append(all, volume.Condition{Reason: reason, Message: fmt.Sprintf(format, args...), Fatal: fatal})
	}
	r, err := b.recent(ctx)
	if err != nil {
		say(true, "PoolUnreachable", "%v", err)
		return all
	}
	if !r.Writable {
		say(true, "PoolReadOnly", "volume group %s is read-only", b.group.Name())
	}
	if b.thin == "" {
		return all
	}
	t, found := r.Volume(b.thin)
	if !found {
		say(true, "PoolUnreachable", "thin pool %s/%s is not there", b.group.Name(), b.thin)
		return all
	}
	if t.Data >= warn {
		say(false, "PoolNearlyFull", "thin pool %s/%s is %.0f %% full: extend it (lvextend), or delete volumes and snapshots", b.group.Name(), b.thin, t.Data*100)
	}
	if t.Metadata >= warn {
		say(false, "MetadataNearlyFull", "the metadata of thin pool %s/%s is %.0f %% full: lvextend --poolmetadatasize", b.group.Name(), b.thin, t.Metadata*100)
	}
	if !t.ErrorsIfFull {
		say(false, "QueuesWhenFull", "thin pool %s/%s lets writes wait for a minute when it is full, and then fails them: lvchange --errorwhenfull y fails them at once", b.group.Name(), b.thin)
	}
	if !t.Zeroing {
		say(false, "ZeroingOff", "thin pool %s/%s does not zero its blocks any more, new volumes may show what others held: lvchange --zero y", b.group.Name(), b.thin)
	}
	return all
}
