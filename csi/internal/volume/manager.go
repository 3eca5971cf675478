package volume

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// Records is the durable store; package journal is one.
type Records interface {
	Put(key string, value any, durable bool) error
	Delete(key string, durable bool) error
	Each(prefix string, visit func(key string, value []byte) error) error
}

// Pool is a backend and what the operator allows it.
type Pool struct {
	Name string
	Path string
	Kind string // of backend, for the operator's tables
	// Backend is nil while the pool is not there; Open is then tried again and again, until it succeeds once.
	Backend    Backend
	Open       func() (Backend, error)
	Missing    error // why it is not there
	Size       int64 // bytes that may be promised; 0: the file system's, less KeepFree
	KeepFree   int64
	Overcommit float64
	Inline     bool // ephemeral volumes of pods are allowed
	Default    bool
}

// Config of a Manager.
type Config struct {
	Pools      []Pool
	KubeletDir string
	Boot       string // id of this boot
	Log        *slog.Logger
	// Changed is told the name of a pool whose free capacity has changed; may be nil. It must not block.
	Changed func(pool string)
}

// Manager is the domain's one object. Use [New], then [Manager.Reconcile] once, then serve.
type Manager struct {
	conf      Config
	records   Records
	log       *slog.Logger
	trash     chan struct{} // there is something to erase
	unsettled chan struct{} // there is something to go on with

	// reserving is held from the question how full a pool is to the promise that rests on the answer; mu is taken
	// inside it.
	reserving sync.Mutex
	// limiting is held from the question what a volume's limit is to be until it is set; mu is taken inside it.
	limiting sync.Mutex

	mu        sync.Mutex
	pools     map[string]*Pool
	volumes   map[string]Volume
	snapshots map[string]Snapshot
	groups    map[string]Group
	busy      map[string]string // id: what is being done to it
	lent      map[string]int    // id: how many copies are being made of it
	next      uint64            // the last Number given
}

// New reads all records.
func New(conf Config, records Records) (*Manager, error) {
	m := &Manager{
		conf: conf, records: records, log: conf.Log, trash: make(chan struct{}, 1), unsettled: make(chan struct{}, 1),
		pools: map[string]*Pool{}, volumes: map[string]Volume{}, snapshots: map[string]Snapshot{}, groups: map[string]Group{},
		busy: map[string]string{}, lent: map[string]int{}, next: uint64(time.Now().UnixNano()) >> 20, //nolint:gosec // after 1970
	}
	for i := range conf.Pools {
		m.pools[conf.Pools[i].Name] = &conf.Pools[i]
	}
	err := errors.Join(
		load(records, "volume/", m.volumes), load(records, "snapshot/", m.snapshots), load(records, "group/", m.groups),
	)
	for _, v := range m.volumes {
		m.next = max(m.next, v.Number)
	}
	return m, err
}

func load[T any](r Records, prefix string, into map[string]T) error {
	return r.Each(prefix, func(id string, b []byte) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("record %s%s: %w", prefix, id, err)
		}
		into[id] = v
		return nil
	})
}

// begin takes an object for one operation; a second one at the same time is Aborted, as CSI says it.
func (m *Manager) begin(id, what string) (end func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now, taken := m.busy[id]; taken {
		return nil, errs.Aborted.Errorf("%s: %s is under way", id, now)
	}
	if n := m.lent[id]; n > 0 {
		return nil, errs.Aborted.Errorf("%s: %d volumes are being made of it", id, n)
	}
	m.busy[id] = what
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.busy, id)
	}, nil
}

// lend takes an object that is copied from: others may copy it too, and nobody may change or remove it meanwhile.
func (m *Manager) lend(id string) (end func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now, taken := m.busy[id]; taken {
		return nil, errs.Aborted.Errorf("%s: %s is under way", id, now)
	}
	m.lent[id]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.lent[id]--; m.lent[id] == 0 {
			delete(m.lent, id)
		}
	}, nil
}

// beginAll is begin for several objects, all or none.
func (m *Manager) beginAll(ids []string, what string) (end func(), err error) {
	var ends []func()
	end = func() {
		for _, e := range ends {
			e()
		}
	}
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		e, err := m.begin(id, what)
		if err != nil {
			end()
			return nil, err
		}
		ends = append(ends, e)
	}
	return end, nil
}

// keep records a volume and makes it the one that everybody sees.
func (m *Manager) keep(v Volume, durable bool) error {
	if err := m.records.Put("volume/"+v.ID, v, durable); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.volumes[v.ID] = v
	return nil
}

func (m *Manager) forget(v Volume) error {
	if err := m.records.Delete("volume/"+v.ID, true); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.volumes, v.ID)
	m.mu.Unlock()
	m.changed(v.Pool)
	return nil
}

func (m *Manager) keepSnapshot(s Snapshot, durable bool) error {
	if err := m.records.Put("snapshot/"+s.ID, s, durable); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshots[s.ID] = s
	return nil
}

func (m *Manager) changed(pool string) {
	if m.conf.Changed != nil {
		m.conf.Changed(pool)
	}
}

// volume finds a volume that is ready.
func (m *Manager) volume(id string) (Volume, *Pool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.volumes[id]
	if !ok || v.Phase == Deleting {
		return Volume{}, nil, errs.NotFound.Errorf("volume %q does not exist on this node", id)
	}
	if v.Phase == Creating {
		return Volume{}, nil, errs.NotFound.Errorf("volume %q is not complete: CreateVolume has not succeeded yet", id)
	}
	p, err := m.poolLocked(v.Pool)
	if v.Node != nil && v.Node.Boot != m.conf.Boot { // the mounts ended with that boot; Reconcile tidies up
		v.Node = nil
	}
	return v, p, err
}

func (m *Manager) poolLocked(name string) (*Pool, error) {
	p, ok := m.pools[name]
	if !ok {
		return nil, errs.Unavailable.Errorf("pool %q is not in the configuration any more: put it back, its volumes still exist", name)
	}
	if p.Backend == nil {
		return nil, errs.Unavailable.Errorf("pool %q is not there, it is looked for again in a moment: %w", name, p.Missing)
	}
	return p, nil
}

func (m *Manager) pool(name string) (*Pool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.poolLocked(name)
}

// Pools lists the pools by name.
func (m *Manager) Pools() []Pool {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Pool, 0, len(m.pools))
	for _, name := range slices.Sorted(maps.Keys(m.pools)) {
		all = append(all, *m.pools[name])
	}
	return all
}

// Copies says whether there may be a snapshot or a clone in any pool; of one that is not there yet nobody knows.
func (m *Manager) Copies() bool {
	return slices.ContainsFunc(m.Pools(), func(p Pool) bool { return p.Backend == nil || !p.Backend.Traits().NoCopies })
}

// Volumes lists all volumes that are complete, by id.
func (m *Manager) Volumes() []Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Volume
	for _, v := range m.volumes {
		if v.Phase == Ready {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b Volume) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Volume is one volume that is complete, or NotFound.
func (m *Manager) Volume(id string) (Volume, error) {
	v, _, err := m.volume(id)
	return v, err
}

// Snapshots lists all snapshots that are complete, by id.
func (m *Manager) Snapshots() []Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Snapshot
	for _, s := range m.snapshots {
		if s.Phase == Ready {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Snapshot is one snapshot that is complete, or NotFound.
func (m *Manager) Snapshot(id string) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.snapshots[id]
	if !ok || s.Phase != Ready {
		return Snapshot{}, errs.NotFound.Errorf("snapshot %q does not exist on this node", id)
	}
	return s, nil
}

// number gives a number that no other volume of this node ever had. The first one of a fresh journal is taken from
// the clock, so that a lost journal does not lead to numbers that a pool has seen.
func (m *Manager) numberLocked() uint64 {
	m.next++
	return m.next
}

func gid(text string) (int, error) {
	if text == "" {
		return -1, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, errs.InvalidArgument.Errorf("volume_mount_group %q is no group id", text)
	}
	return int(n), nil //nolint:gosec // 31 bits
}

// cleanup is ctx for what must be undone even if the caller has gone.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}
