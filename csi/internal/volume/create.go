package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	createBeforeIntent = failpoint.New("csi.create.before_intent")
	createAfterIntent  = failpoint.New("csi.create.after_intent")
	createAfterEnsure  = failpoint.New("csi.create.after_ensure")
	createAfterReady   = failpoint.New("csi.create.after_ready")
	createUndo         = failpoint.New("csi.create.undo")
)

// CreateRequest is what a volume shall be. The edge has checked the form of everything, the story checks what it means.
type CreateRequest struct {
	Name            string
	Required, Limit int64 // bytes; Limit 0: none
	Pool            string
	Block           bool
	FSType          string
	Params, Owner   map[string]string
	Mutable         map[string]string // of a VolumeAttributesClass
	Source          Source
	Inline          bool
}

// DefaultSize is the size of a volume for which none was asked, in bytes.
const DefaultSize = 1 << 30

// Create makes a volume and answers when it is complete and on the disk. A repeated request gets what the first one
// made; one that asks for something else under the same name is AlreadyExists.
func (m *Manager) Create(ctx context.Context, r CreateRequest) (Volume, error) {
	// 1. One operation per name; a repeated one finds what is there.
	id := newID(volumeKind, r.Name)
	end, err := m.begin(id, "CreateVolume")
	if err != nil {
		return Volume{}, err
	}
	defer end()
	v, p, found, err := m.existing(id, r)
	if err != nil || found && v.Phase == Ready {
		return v, err
	}
	if !found {
		// 2. Decide what it shall be, and promise it before anything else happens.
		if v, p, err = m.promise(ctx, id, r); err != nil {
			return Volume{}, err
		}
		// 3. The intent, on the disk.
		if err := errors.Join(createBeforeIntent.Hit(), m.records.Put("volume/"+v.ID, v, true)); err != nil {
			return Volume{}, errors.Join(err, m.undo(ctx, p, v))
		}
	}
	// 4. The storage, and the record that it is complete. A copy may take longer than the caller waits: it goes on, whoever
	// asks meanwhile is told so (Aborted), and whoever asks then gets it.
	v, err = m.complete(context.WithoutCancel(ctx), p, v)
	if err != nil {
		return Volume{}, err
	}
	m.changed(v.Pool)
	return v, nil
}

// existing finds a volume of the same name and compares it with what is asked for.
func (m *Manager) existing(id string, r CreateRequest) (v Volume, p *Pool, found bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, found = m.volumes[id]
	if !found {
		return v, nil, false, nil
	}
	if v.Phase == Deleting {
		return v, nil, true, errs.Aborted.Errorf("volume %q is being deleted; try again when it is gone", r.Name)
	}
	if p, err = m.poolLocked(v.Pool); err != nil {
		return v, nil, true, err
	}
	return v, p, true, mismatch(v, p, r)
}

// mismatch says what of an existing volume is not what is asked for. The capacity it has must lie in the range.
func mismatch(v Volume, p *Pool, r CreateRequest) error {
	var what string
	switch {
	case v.Name != r.Name:
		return errs.Internal.Errorf("volumes %q and %q have the same id", v.Name, r.Name)
	case r.Required > v.Capacity || r.Limit > 0 && r.Limit < v.Capacity:
		what = "capacity_range"
	case r.Pool != "" && r.Pool != v.Pool || r.Pool == "" && !p.Default && v.Source.None() && !v.Inline:
		what = "parameters.pool"
	case v.Block != r.Block || r.FSType != "" && r.FSType != v.FSType && !v.Block:
		what = "volume_capabilities"
	case v.Source != r.Source:
		what = "volume_content_source"
	case !maps.Equal(v.Params, r.Params):
		what = "parameters"
	default:
		return nil
	}
	return errs.AlreadyExists.Errorf("volume %q exists with another %s (it has %d bytes in pool %s): use another name or ask for the same", r.Name, what, v.Capacity, v.Pool)
}

// promise decides about a new volume and enters it in the ledger, in one step.
func (m *Manager) promise(ctx context.Context, id string, r CreateRequest) (Volume, *Pool, error) {
	p, from, err := m.place(r)
	if err != nil {
		return Volume{}, nil, err
	}
	v, err := design(p, r, from)
	if err != nil {
		return Volume{}, nil, err
	}
	v.ID, v.Created = id, time.Now().UTC()
	if from.volume.ID != "" && p.Backend.Traits().Charged {
		if v.Inherited, err = p.Backend.Footprint(ctx, m.spec(from.volume)); err != nil {
			return Volume{}, nil, err
		}
		v.Inherited += from.volume.Inherited
	}
	m.reserving.Lock()
	defer m.reserving.Unlock()
	s, err := m.ask(ctx, p)
	if err != nil {
		return Volume{}, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.reserveLocked(p, s, v.reserved()); err != nil {
		return Volume{}, nil, err
	}
	v.Number = m.numberLocked()
	m.volumes[id] = v
	return v, p, nil
}

// origin is what a volume is made from, at most one of them.
type origin struct {
	volume   Volume
	snapshot Snapshot
}

// place finds the pool and the source.
func (m *Manager) place(r CreateRequest) (*Pool, origin, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var from origin
	name := r.Pool
	if id := r.Source.Volume; id != "" {
		v, ok := m.volumes[id]
		if !ok || v.Phase != Ready {
			return nil, from, errs.NotFound.Errorf("volume_content_source: volume %q does not exist on this node", id)
		}
		from.volume = v
		name = cmpOr(name, v.Pool)
	}
	if id := r.Source.Snapshot; id != "" {
		s, ok := m.snapshots[id]
		if !ok || s.Phase != Ready {
			return nil, from, errs.NotFound.Errorf("volume_content_source: snapshot %q does not exist on this node", id)
		}
		from.snapshot = s
		name = cmpOr(name, s.Pool)
	}
	if name == "" {
		if name = m.defaultLocked(); name == "" {
			return nil, from, errs.InvalidArgument.Errorf("parameters: no pool is named and none is the default; say pool: one of %s", strings.Join(slices.Sorted(maps.Keys(m.pools)), ", "))
		}
	}
	if _, ok := m.pools[name]; !ok {
		return nil, from, errs.InvalidArgument.Errorf("parameters.pool: %q does not exist on this node; it has %s", name, strings.Join(slices.Sorted(maps.Keys(m.pools)), ", "))
	}
	p, err := m.poolLocked(name)
	if err != nil {
		return nil, from, err
	}
	if source := cmpOr(from.volume.Pool, from.snapshot.Pool); source != "" && source != p.Name {
		return nil, from, errs.InvalidArgument.Errorf("parameters.pool: %q, but the volume_content_source is in pool %q: use that", p.Name, source)
	}
	return p, from, nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// design is pure: what a new volume in a pool shall be.
func design(p *Pool, r CreateRequest, from origin) (Volume, error) {
	t := p.Backend.Traits()
	v := Volume{
		Name: r.Name, Pool: p.Name, Phase: Creating, Block: r.Block, FSType: r.FSType, Thin: p.Overcommit > 1,
		Params: r.Params, Source: r.Source, Owner: r.Owner, Inline: r.Inline, Mutable: r.Mutable,
	}
	if r.Inline && !p.Inline {
		return v, errs.InvalidArgument.Errorf("pool %s does not take inline volumes: set pools.%s.ephemeral, or use a claim", p.Name, p.Name)
	}
	if r.Block && !t.Block {
		return v, errs.InvalidArgument.Errorf("volume_capabilities: pool %s (%s) has no raw block volumes: use a pool of the loop backend", p.Name, p.Kind)
	}
	if t.NoCopies && !r.Source.None() {
		return v, errs.InvalidArgument.Errorf("volume_content_source: pool %s (%s) has no snapshots and no clones", p.Name, p.Kind)
	}
	least := t.MinSize
	if !r.Source.None() {
		size, block, fstype := from.volume.Capacity, from.volume.Block, from.volume.FSType
		if from.snapshot.ID != "" {
			size, block, fstype = from.snapshot.Size, from.snapshot.Block, from.snapshot.FSType
		}
		if block != r.Block || r.FSType != "" && r.FSType != fstype && !block {
			return v, errs.InvalidArgument.Errorf("volume_capabilities: the volume_content_source is %s, ask for the same", kindName(block, fstype))
		}
		v.FSType, v.Shared, least = fstype, true, size
		v.Origins = from.snapshot.Origins
		if from.volume.ID != "" {
			v.Origins = append(slices.Clone(from.volume.Origins), from.volume.ID)
		}
		if from.snapshot.ID != "" && t.Charged {
			v.Inherited = from.snapshot.Held
		}
	} else if !r.Block {
		if v.FSType == "" {
			v.FSType = t.FSTypes[0]
		}
		if !slices.Contains(t.FSTypes, v.FSType) {
			return v, errs.InvalidArgument.Errorf("fs_type: %q, pool %s (%s) has %s", v.FSType, p.Name, p.Kind, strings.Join(t.FSTypes, ", "))
		}
		least = max(least, t.MinOf[v.FSType])
	}
	if err := p.Backend.CheckTuning(v.spec()); err != nil {
		return v, err
	}
	var err error
	v.Capacity, err = size(r, least)
	return v, err
}

func kindName(block bool, fstype string) string {
	if block {
		return "raw block"
	}
	return "a file system of type " + fstype
}

// size is the capacity of a new volume: what is required, or the least there is, within the limit.
func size(r CreateRequest, least int64) (int64, error) {
	n := r.Required
	if n == 0 {
		n = max(least, DefaultSize)
		if r.Limit > 0 {
			n = min(n, r.Limit)
		}
		if !r.Source.None() {
			n = least
		}
	}
	if n < least && !r.Source.None() {
		return 0, errs.OutOfRange.Errorf("capacity_range.required_bytes: %d, the volume_content_source has %d", n, least)
	}
	if r.Limit > 0 && max(n, least) > r.Limit {
		return 0, errs.OutOfRange.Errorf("capacity_range.limit_bytes: %d, the least here is %d", r.Limit, max(n, least))
	}
	return max(n, least), nil
}

// complete makes the storage of a volume whose intent is recorded.
func (m *Manager) complete(ctx context.Context, p *Pool, v Volume) (Volume, error) {
	if err := createAfterIntent.Hit(); err != nil {
		return v, errors.Join(err, m.undo(ctx, p, v))
	}
	err := m.charge(ctx, p, v.Origins)
	if err == nil {
		err = m.ensure(ctx, p, v)
	}
	if err == nil && !v.Source.None() { // it could not be made again: the source goes on
		err = p.Backend.Commit(ctx, m.spec(v))
	}
	if err == nil {
		err = createAfterEnsure.Hit()
	}
	if err != nil {
		return v, errors.Join(err, m.undo(ctx, p, v))
	}
	v.Phase = Ready
	// Not synced: after a power cut the volume is still "creating" and is completed at start; before it is used for
	// the first time the record is synced (see Stage).
	if err := m.keep(v, false); err != nil {
		v.Phase = Creating
		return v, errors.Join(err, m.undo(ctx, p, v))
	}
	return v, createAfterReady.Hit()
}

// ensure makes the storage. A source in use is snapshotted first, so that the copy is of one moment.
func (m *Manager) ensure(ctx context.Context, p *Pool, v Volume) error {
	if v.Source.None() {
		return p.Backend.Ensure(ctx, m.spec(v))
	}
	if v.Source.Snapshot != "" {
		end, err := m.lend(v.Source.Snapshot)
		if err != nil {
			return err
		}
		defer end()
		if _, err := m.Snapshot(v.Source.Snapshot); err != nil {
			return err
		}
		return p.Backend.Ensure(ctx, m.spec(v))
	}
	end, err := m.begin(v.Source.Volume, "cloning")
	if err != nil {
		return err
	}
	defer end()
	src, _, err := m.volume(v.Source.Volume)
	if err != nil {
		return err
	}
	if err := m.share(src); err != nil {
		return err
	}
	spec := m.spec(v)
	if src.Staged() {
		if err := m.shoot(ctx, p, []Volume{src}, []string{v.bridge()}); err != nil {
			return err
		}
		spec.Source = Source{Snapshot: v.bridge()}
	}
	err = p.Backend.Ensure(ctx, spec)
	undo, cancel := cleanup(ctx)
	defer cancel()
	return errors.Join(err, p.Backend.RemoveSnapshot(undo, v.bridge())) // also one that a killed attempt left
}

// bridge is the id of the snapshot, without a record, over which a volume in use is cloned.
func (v Volume) bridge() string { return newID(snapshotKind, "clone\x00"+v.ID) }

// share marks that a volume shares storage from now on.
func (m *Manager) share(v Volume) error {
	if v.Shared {
		return nil
	}
	v.Shared = true
	return m.keep(v, true)
}

// undo removes what a failed Create has made: the record goes last, so that a kill in between is gone on with. If the
// storage cannot be removed the record stays, in phase deleting, for Reconcile.
func (m *Manager) undo(ctx context.Context, p *Pool, v Volume) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := createUndo.Hit(); err != nil {
		return err
	}
	v.Phase = Deleting
	if err := m.keep(v, true); err != nil {
		m.mu.Lock() // the journal does not take it: what is on the disk says creating, or nothing
		defer m.mu.Unlock()
		m.volumes[v.ID] = v
		return err
	}
	return m.finishDelete(ctx, p, v)
}
