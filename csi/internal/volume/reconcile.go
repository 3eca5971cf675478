package volume

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var reconcileStep = failpoint.New("csi.reconcile.step")

// Reconcile goes on with whatever a killed process or a power cut has interrupted, in the direction that the record
// says, as far as that is quick. It is called once before anything is served. What may take long, a copy or an allocation,
// is gone on with by Run, as is what cannot be done now because a pool is not there; it is logged, never dropped.
func (m *Manager) Reconcile(ctx context.Context) {
	for _, v := range m.all() {
		if err := m.reconcileVolume(ctx, v, false); err != nil {
			m.log.Warn("volume left as it is for now", "volume", v.ID, "phase", string(v.Phase), "error", err)
		}
	}
	for _, p := range m.Pools() {
		if p.Backend == nil {
			continue
		}
		if err := m.relimit(ctx, &p); err != nil {
			m.log.Error("limits of volumes not set anew", "pool", p.Name, "error", err)
		}
	}
	for _, s := range m.allSnapshots() {
		if err := m.reconcileSnapshot(ctx, s); err != nil {
			m.log.Warn("snapshot left as it is for now", "snapshot", s.ID, "phase", string(s.Phase), "error", err)
		}
	}
	m.mu.Lock()
	var groups []Group
	for _, g := range m.groups {
		if g.Phase != Ready {
			groups = append(groups, g)
		}
	}
	m.mu.Unlock()
	for _, g := range groups {
		if err := m.removeGroup(ctx, g); err != nil {
			m.log.Warn("group snapshot left as it is for now", "group", g.ID, "error", err)
		}
	}
}

func (m *Manager) all() []Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Volume
	for _, v := range m.volumes {
		all = append(all, v)
	}
	// Sources before what is made from them.
	slices.SortFunc(all, func(a, b Volume) int { return int(int64(a.Number) - int64(b.Number)) }) //nolint:gosec // small
	return all
}

func (m *Manager) allSnapshots() []Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Snapshot
	for _, s := range m.snapshots {
		all = append(all, s)
	}
	return all
}

// reconcileVolume goes on with a volume; with what may take long only if long is set.
func (m *Manager) reconcileVolume(ctx context.Context, v Volume, long bool) error {
	end, err := m.begin(v.ID, "reconciling")
	if err != nil {
		return err
	}
	defer end()
	if err := reconcileStep.Hit(); err != nil {
		return err
	}
	m.mu.Lock() // as it is now, since nobody else has it
	v, there := m.volumes[v.ID]
	m.mu.Unlock()
	if !there {
		return nil
	}
	if v, err = m.afterBoot(v); err != nil { // of a pool that is gone for good, too
		return err
	}
	p, err := m.pool(v.Pool)
	if err != nil {
		return err
	}
	return m.goOn(ctx, p, v, long)
}

// goOn does what a volume's record says was being done.
func (m *Manager) goOn(ctx context.Context, p *Pool, v Volume, long bool) error {
	switch {
	case v.Phase == Deleting:
		return m.finishDelete(ctx, p, v)
	case v.Phase == Creating:
		if err := m.thaw(ctx, p, v.Source.Volume); err != nil {
			return err
		}
		if !long {
			return nil
		}
		_, err := m.complete(ctx, p, v)
		if errs.Of(err) == errs.NotFound || errs.Of(err) == errs.ResourceExhausted {
			m.log.Info("an interrupted CreateVolume cannot be completed and is undone", "volume", v.ID, "name", v.Name, "error", err)
			return nil
		}
		return err
	case v.Growing != 0:
		if !long {
			return nil
		}
		if err := m.resize(ctx, p, v); err != nil {
			if errs.Of(err) != errs.ResourceExhausted {
				return err
			}
			v.Capacity = v.Growing
		}
		v.Growing = 0
		return m.keep(v, true)
	case v.Tuning:
		if err := p.Backend.Tune(ctx, m.spec(v)); err != nil {
			return err
		}
		v.Tuning = false
		return m.keep(v, true)
	}
	return m.remake(ctx, p, v)
}

// remake makes the storage of a volume again that is complete, as far as its record says, was never used and is not there: where
// the records are on another file system than the pool, a power cut may leave the one without the other.
func (m *Manager) remake(ctx context.Context, p *Pool, v Volume) error {
	if v.Used || !v.Source.None() {
		return nil
	}
	there, err := p.Backend.Exists(ctx, v.ID)
	if err != nil || there {
		return err
	}
	m.log.Warn("a volume that nobody has used yet has no storage: it is made again", "volume", v.ID, "pool", p.Name)
	return p.Backend.Ensure(ctx, m.spec(v))
}

// afterBoot forgets the mounts of an earlier boot.
func (m *Manager) afterBoot(v Volume) (Volume, error) {
	if v.Node == nil || v.Node.Boot == m.conf.Boot {
		return v, nil
	}
	for _, path := range append(v.Targets(), v.Node.Staging) {
		if err := m.removeEmpty(path); err != nil {
			m.log.Info("a mount point of the last boot is left", "volume", v.ID, "path", path, "error", err)
		}
	}
	v.Node = nil
	return v, m.keep(v, false)
}

// removeEmpty removes a target of an earlier boot; the kubelet makes its directories anew.
func (m *Manager) removeEmpty(path string) error {
	at, err := m.open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer at.close()
	f, now, err := at.at()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil || now.Mounted {
		return err
	}
	return at.remove()
}

// reconcileSnapshot removes what was not completed: the moment it was to be of has passed, and nobody was told of it.
// A source that was frozen when the process died is thawed first.
func (m *Manager) reconcileSnapshot(ctx context.Context, s Snapshot) error {
	if s.Phase == Ready && (s.Group == "" || m.hasGroup(s.Group)) {
		return nil
	}
	end, err := m.beginAll([]string{s.ID, s.Volume}, "reconciling")
	if err != nil {
		return err
	}
	defer end()
	p, err := m.pool(s.Pool)
	if err != nil {
		return err
	}
	if err := m.thaw(ctx, p, s.Volume); err != nil {
		return err
	}
	return m.removeSnapshot(ctx, p, s)
}

func (m *Manager) hasGroup(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.groups[id]
	return ok
}

func (m *Manager) thaw(ctx context.Context, p *Pool, volume string) error {
	v, _, err := m.volume(volume)
	if err != nil || !v.Staged() || v.Block {
		return nil //nolint:nilerr // gone, or nothing to thaw
	}
	f, err := m.mounted(ctx, p, v)
	if err != nil || f == nil {
		return err
	}
	return errors.Join(p.Backend.Thaw(ctx, f), f.Close())
}

// Run erases what was removed and tries again what Reconcile had to leave, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	look := time.NewTicker(lookForPools)
	defer look.Stop()
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { m.settle(ctx) })
	wake := map[string]chan struct{}{}
	for _, p := range m.Pools() {
		w := make(chan struct{}, 1)
		wake[p.Name] = w
		background.Go(func() { m.purge(ctx, p.Name, w) })
	}
	m.Purge()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.trash:
			for _, w := range wake {
				select {
				case w <- struct{}{}:
				default: // it will look once more anyway
				}
			}
		case <-look.C:
			m.reopen(ctx)
		case <-tick.C:
			m.Purge()
		}
	}
}

// purge erases what was removed from a pool, whenever it is woken. A disk may take hours, so each pool has its own.
func (m *Manager) purge(ctx context.Context, pool string, wake <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		p, err := m.pool(pool)
		if err != nil {
			continue // not there: health says so
		}
		left, err := p.Backend.Purge(ctx)
		if err != nil && ctx.Err() == nil {
			m.log.Warn("erasing what was removed", "pool", pool, "left", left, "error", err)
		}
		m.changed(pool)
	}
}

// settle goes on with what Reconcile has left, at once and then every minute. A copy may take hours; nothing else waits for it.
func (m *Manager) settle(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		m.retry(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-m.unsettled:
		}
	}
}

// retry is Reconcile for what is not under way by a caller.
func (m *Manager) retry(ctx context.Context) {
	for _, v := range m.all() {
		if v.Phase == Ready && v.Growing == 0 && !v.Tuning {
			continue
		}
		if err := m.reconcileVolume(ctx, v, true); err != nil && errs.Of(err) != errs.Aborted {
			m.log.Warn("volume left as it is for now", "volume", v.ID, "phase", string(v.Phase), "error", err)
		}
	}
	for _, s := range m.allSnapshots() {
		if s.Phase == Ready {
			continue
		}
		if err := m.reconcileSnapshot(ctx, s); err != nil && errs.Of(err) != errs.Aborted {
			m.log.Warn("snapshot left as it is for now", "snapshot", s.ID, "phase", string(s.Phase), "error", err)
		}
	}
}

// Orphan is storage that no record knows.
type Orphan struct {
	Pool string `json:"pool"`
	ID   string `json:"id"`
	Kind string `json:"kind"` // volume or snapshot
}

// Orphans lists the storage of all pools that no record knows; a pool that is not there is an error among the rest.
// Nothing is removed.
func (m *Manager) Orphans(ctx context.Context) ([]Orphan, error) {
	var found []Orphan
	var failed error
	for _, p := range m.Pools() {
		if p.Backend == nil {
			failed = errors.Join(failed, p.Missing)
			continue
		}
		volumes, snapshots, err := p.Backend.Inventory(ctx)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		m.mu.Lock()
		for _, id := range volumes {
			if _, known := m.volumes[id]; !known {
				found = append(found, Orphan{Pool: p.Name, ID: id, Kind: "volume"})
			}
		}
		for _, id := range snapshots {
			if _, known := m.snapshots[id]; !known {
				found = append(found, Orphan{Pool: p.Name, ID: id, Kind: "snapshot"})
			}
		}
		m.mu.Unlock()
	}
	return found, failed
}
