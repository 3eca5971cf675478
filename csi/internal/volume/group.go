package volume

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/berth-project/berth/proto/errs"
)

// CreateGroup makes snapshots of several volumes, all of one moment, or none.
func (m *Manager) CreateGroup(ctx context.Context, name string, volumes []string) (Group, []Snapshot, error) {
	id := newID(groupKind, name)
	end, err := m.beginAll(append([]string{id}, volumes...), "CreateVolumeGroupSnapshot")
	if err != nil {
		return Group{}, nil, err
	}
	defer end()
	if g, all, found := m.group(id); found {
		if !sameVolumes(all, volumes) {
			return g, nil, errs.AlreadyExists.Errorf("group snapshot %q exists of other volumes: use another name", name)
		}
		return g, all, nil
	}
	// 1. The members, in one pool.
	var of []Volume
	var todo []Snapshot
	var p *Pool
	for _, vid := range slices.Sorted(slices.Values(volumes)) {
		v, vp, err := m.volume(vid)
		if err != nil {
			return Group{}, nil, err
		}
		if p != nil && vp.Name != p.Name {
			return Group{}, nil, errs.FailedPrecondition.Errorf("source_volume_ids: volumes of pools %s and %s cannot be snapshotted at one moment", p.Name, vp.Name)
		}
		p = vp
		of = append(of, v)
		todo = append(todo, Snapshot{ID: newID(snapshotKind, name+"\x00"+vid), Name: name, Group: id})
	}
	// 2. The snapshots; their records carry the group, so that a kill leaves all or, after Reconcile, none.
	all, err := m.take(ctx, p, of, todo)
	if err != nil {
		return Group{}, nil, err
	}
	g := Group{ID: id, Name: name, Phase: Ready, Created: all[0].Created}
	for _, s := range all {
		g.Snapshots = append(g.Snapshots, s.ID)
	}
	if err := m.records.Put("group/"+id, g, true); err != nil {
		undo, cancel := cleanup(ctx)
		defer cancel()
		for _, s := range all {
			err = errors.Join(err, m.removeSnapshot(undo, p, s))
		}
		return Group{}, nil, err
	}
	m.mu.Lock()
	m.groups[id] = g
	m.mu.Unlock()
	return g, all, nil
}

func sameVolumes(all []Snapshot, volumes []string) bool {
	have := map[string]bool{}
	for _, s := range all {
		have[s.Volume] = true
	}
	want := map[string]bool{}
	for _, v := range volumes {
		want[v] = true
	}
	return maps.Equal(have, want)
}

func (m *Manager) group(id string) (Group, []Snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.groups[id]
	if !ok || g.Phase != Ready {
		return g, nil, false
	}
	var all []Snapshot
	for _, sid := range g.Snapshots {
		all = append(all, m.snapshots[sid])
	}
	return g, all, true
}

// Group is a group snapshot with its members, whose ids must be these if any are given.
func (m *Manager) Group(id string, members []string) (Group, []Snapshot, error) {
	g, all, found := m.group(id)
	if !found {
		return g, nil, errs.NotFound.Errorf("group snapshot %q does not exist on this node", id)
	}
	return g, all, wrongMembers(g, members)
}

func wrongMembers(g Group, members []string) error {
	if len(members) > 0 && !slices.Equal(slices.Sorted(slices.Values(members)), slices.Sorted(slices.Values(g.Snapshots))) {
		return errs.InvalidArgument.Errorf("snapshot_ids: they are not the members of group snapshot %s, which are %v", g.ID, g.Snapshots)
	}
	return nil
}

// DeleteGroup removes a group snapshot with all its members; one that does not exist is fine.
func (m *Manager) DeleteGroup(ctx context.Context, id string, members []string) error {
	m.mu.Lock()
	parts := slices.Clone(m.groups[id].Snapshots)
	m.mu.Unlock()
	end, err := m.beginAll(append(parts, id), "DeleteVolumeGroupSnapshot")
	if err != nil {
		return err
	}
	defer end()
	m.mu.Lock()
	g, found := m.groups[id] // a group's members never change
	m.mu.Unlock()
	if !found {
		return nil
	}
	if err := wrongMembers(g, members); err != nil {
		return err
	}
	return m.removeGroup(ctx, g)
}

func (m *Manager) removeGroup(ctx context.Context, g Group) error {
	g.Phase = Deleting
	if err := m.records.Put("group/"+g.ID, g, true); err != nil {
		return err
	}
	m.mu.Lock()
	m.groups[g.ID] = g
	var all []Snapshot
	for _, id := range g.Snapshots {
		if s, ok := m.snapshots[id]; ok {
			all = append(all, s)
		}
	}
	m.mu.Unlock()
	for _, s := range all {
		p, err := m.pool(s.Pool)
		if err != nil {
			return err
		}
		if err := m.removeSnapshot(ctx, p, s); err != nil {
			return err
		}
	}
	if err := m.records.Delete("group/"+g.ID, true); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.groups, g.ID)
	return nil
}
