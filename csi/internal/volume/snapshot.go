package volume

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var (
	snapshotAfterIntent   = failpoint.New("csi.snapshot.after_intent")
	snapshotAfterShoot    = failpoint.New("csi.snapshot.after_shoot")
	snapshotAfterReady    = failpoint.New("csi.snapshot.after_ready")
	unsnapshotAfterIntent = failpoint.New("csi.delete_snapshot.after_intent")
	unsnapshotAfterRemove = failpoint.New("csi.delete_snapshot.after_remove")
	unsnapshotAfterForget = failpoint.New("csi.delete_snapshot.after_forget")
)

// CreateSnapshot makes a snapshot of one volume. A repeated request gets the first one's snapshot, with its time; the
// same name for another volume is AlreadyExists.
func (m *Manager) CreateSnapshot(ctx context.Context, name, volume string) (Snapshot, error) {
	id := newID(snapshotKind, name)
	end, err := m.beginAll([]string{id, volume}, "CreateSnapshot")
	if err != nil {
		return Snapshot{}, err
	}
	defer end()
	m.mu.Lock()
	s, found := m.snapshots[id]
	m.mu.Unlock()
	if found && s.Phase == Ready {
		if s.Volume != volume {
			return s, errs.AlreadyExists.Errorf("snapshot %q exists of volume %s, not of %s: use another name", name, s.Volume, volume)
		}
		return s, nil
	}
	if found { // a killed one that Reconcile could not remove yet
		return s, errs.Aborted.Errorf("snapshot %q: what an interrupted attempt left is being removed; try again", name)
	}
	v, p, err := m.volume(volume)
	if err != nil {
		return s, err
	}
	all, err := m.take(ctx, p, []Volume{v}, []Snapshot{{ID: id, Name: name}})
	if err != nil {
		return s, err
	}
	return all[0], snapshotAfterReady.Hit()
}

// take makes snapshots of volumes of one pool, of one moment: what they are is in todo but for what the volumes say.
func (m *Manager) take(ctx context.Context, p *Pool, of []Volume, todo []Snapshot) ([]Snapshot, error) {
	// 1. Promise what they may hold, with the intent on the disk.
	todo, err := m.promiseSnapshots(ctx, p, of, todo)
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // as of Create
	undo := func(err error) ([]Snapshot, error) {
		ctx, cancel := cleanup(ctx)
		defer cancel()
		for _, s := range todo {
			err = errors.Join(err, m.removeSnapshot(ctx, p, s))
		}
		return nil, err
	}
	for i := range todo {
		if err := m.records.Put("snapshot/"+todo[i].ID, todo[i], i == len(todo)-1); err != nil {
			return undo(err)
		}
	}
	if err := snapshotAfterIntent.Hit(); err != nil {
		return undo(err)
	}
	// 2. The limits of those that the frozen bytes stay charged to, then the snapshots.
	ids := make([]string, len(todo))
	for i, v := range of {
		ids[i] = todo[i].ID
		if err := errors.Join(m.share(v), m.charge(ctx, p, todo[i].Origins)); err != nil {
			return undo(err)
		}
	}
	if err := errors.Join(m.shoot(ctx, p, of, ids), snapshotAfterShoot.Hit()); err != nil {
		return undo(err)
	}
	// 3. They are complete; on the disk before anybody is told.
	for i := range todo {
		todo[i].Phase = Ready
		if err := m.keepSnapshot(todo[i], i == len(todo)-1); err != nil {
			return undo(err)
		}
	}
	m.changed(p.Name)
	return todo, nil
}

func (m *Manager) promiseSnapshots(ctx context.Context, p *Pool, of []Volume, todo []Snapshot) ([]Snapshot, error) {
	if p.Backend.Traits().NoCopies {
		return nil, errs.FailedPrecondition.Errorf("source_volume_id: pool %s (%s) has no snapshots", p.Name, p.Kind)
	}
	now := time.Now().UTC()
	var sum int64
	todo = slices.Clone(todo)
	for i, v := range of {
		held, err := p.Backend.Footprint(ctx, m.spec(v))
		if err != nil {
			return nil, err
		}
		t := &todo[i]
		t.Pool, t.Phase, t.Volume, t.Size, t.Held, t.Created = p.Name, Creating, v.ID, v.Capacity, held+v.Inherited, now
		t.Block, t.FSType, t.Origins = v.Block, v.FSType, append(slices.Clone(v.Origins), v.ID)
		sum += t.Held
	}
	m.reserving.Lock()
	defer m.reserving.Unlock()
	s, err := m.ask(ctx, p)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.reserveLocked(p, s, sum); err != nil {
		return nil, err
	}
	for _, t := range todo {
		m.snapshots[t.ID] = t
	}
	return todo, nil
}

// shoot calls the backend with the staging mounts of the volumes open.
func (m *Manager) shoot(ctx context.Context, p *Pool, of []Volume, ids []string) error {
	var specs []SnapshotSpec
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close() // O_PATH
		}
	}()
	for i, v := range of {
		s := SnapshotSpec{ID: ids[i], Volume: m.spec(v), InUse: v.Staged()}
		if v.Staged() && !v.Block {
			f, err := m.mounted(ctx, p, v)
			if err != nil {
				return err
			}
			if f != nil {
				open = append(open, f)
				s.Mounted = f
			}
		}
		specs = append(specs, s)
	}
	return p.Backend.Snapshot(ctx, specs)
}

// mounted opens the staging mount of a volume; nil if it is not mounted after all.
func (m *Manager) mounted(ctx context.Context, p *Pool, v Volume) (*os.File, error) {
	f, at, err := m.look(v.Node.Staging)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if ours, err := p.Backend.Holds(ctx, m.spec(v), at); err != nil || !ours || !at.Mounted {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// DeleteSnapshot removes a snapshot; one that does not exist is fine. A member of a group is InvalidArgument.
func (m *Manager) DeleteSnapshot(ctx context.Context, id string) error {
	end, err := m.begin(id, "DeleteSnapshot")
	if err != nil {
		return err
	}
	defer end()
	m.mu.Lock()
	s, ok := m.snapshots[id]
	m.mu.Unlock()
	if !ok {
		return nil
	}
	if s.Group != "" {
		return errs.InvalidArgument.Errorf("snapshot %s is a member of group snapshot %s: delete that", id, s.Group)
	}
	p, err := m.pool(s.Pool)
	if err != nil {
		return err
	}
	return m.removeSnapshot(ctx, p, s)
}

// removeSnapshot removes storage and record, in an order that a kill does not disturb.
func (m *Manager) removeSnapshot(ctx context.Context, p *Pool, s Snapshot) error {
	s.Phase = Deleting
	if err := errors.Join(m.keepSnapshot(s, true), unsnapshotAfterIntent.Hit()); err != nil {
		return err
	}
	if err := errors.Join(p.Backend.RemoveSnapshot(ctx, s.ID), unsnapshotAfterRemove.Hit()); err != nil {
		return err
	}
	if err := m.records.Delete("snapshot/"+s.ID, true); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.snapshots, s.ID)
	m.mu.Unlock()
	m.Purge()
	m.changed(s.Pool)
	return errors.Join(unsnapshotAfterForget.Hit(), m.charge(ctx, p, s.Origins))
}
