package systemd

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
)

// Scope is a unit to be: its name, the slice that it lies in and what systemctl says it is.
type Scope struct {
	Slice       string // "kubepods-pod1.slice"
	Unit        string // "cri-berth-<id>.scope"
	Description string
}

// Path is the scope's cgroup.
func (s Scope) Path() (string, error) {
	slice, err := cgroup.ExpandSlice(s.Slice)
	return path.Join(slice, s.Unit), err
}

// property and aux are the arguments of StartTransientUnit, signature "ssa(sv)a(sa(sv))" (org.freedesktop.systemd1(5)).
type property struct {
	Name  string
	Value dbus.Variant
}

type aux struct {
	Name       string
	Properties []property
}

// compile makes a scope's properties. Delegate keeps systemd away from all below the scope, and has every controller
// enabled for it. Tasks are not limited, where systemd's default is 15 % of the machine's: the kubelet limits the slice.
// Without default dependencies the pods of a node that shuts down are the kubelet's to end. A scope that has failed is
// forgotten like one that has ended.
func compile(s Scope, pid uint32) []property {
	v := dbus.MakeVariant
	return []property{
		{"Description", v(s.Description)},
		{"Slice", v(s.Slice)},
		{"Delegate", v(true)},
		{"DefaultDependencies", v(false)},
		{"CollectMode", v("inactive-or-failed")},
		{"TasksMax", v(uint64(math.MaxUint64))},
		{"CPUAccounting", v(true)},
		{"MemoryAccounting", v(true)},
		{"IOAccounting", v(true)},
		{"TasksAccounting", v(true)},
		{"PIDs", v([]uint32{pid})},
	}
}

const (
	// moveLimit is how long a process may take to be in its scope after systemd has taken the request.
	moveLimit = 10 * time.Second
	// existLimit is how long a unit of the same name may take to end.
	existLimit = 5 * time.Second
)

// Adopt has systemd move a process into a scope of its own, and returns when it is there. A process that is there already
// is fine.
func (m *Manager) Adopt(ctx context.Context, s Scope, pid int) error {
	group, err := s.Path()
	if err != nil {
		return err
	}
	if in(pid, group) {
		return nil
	}
	if err := m.start(ctx, s, pid, group); err != nil {
		return fmt.Errorf("scope %s: %w", s.Unit, err)
	}
	return nil
}

// start makes the unit and waits until the process is in its group. One of the same name that is on its way out is
// waited for.
func (m *Manager) start(ctx context.Context, s Scope, pid int, group string) error {
	begin := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		var job dbus.ObjectPath
		err := m.call(ctx, manager+"StartTransientUnit", []any{&job}, s.Unit, "replace", compile(s, uint32(pid)), []aux{}) //nolint:gosec // a pid
		if err == nil {
			break
		}
		if in(pid, group) { // the answer was lost, the request was not
			return nil
		}
		if !is(err, "UnitExists") || time.Since(begin) > existLimit {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	begin = time.Now()
	for wait := 200 * time.Microsecond; !in(pid, group); wait = min(2*wait, 50*time.Millisecond) {
		if time.Since(begin) > moveLimit {
			return errs.Unavailable.Errorf("systemd took the request, but process %d is not in %s after %v: see `systemctl status %s`", pid, group, moveLimit, s.Unit)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// in says whether a process is in a group of the unified tree.
func in(pid int, group string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return at == group
		}
	}
	return false
}

// Remove kills everything in a scope and waits until systemd has let go of it, which it does by itself when the last
// process is gone; it is told if it does not. A scope that is not there is fine. Hierarchies of v1 that systemd does not
// manage are cleaned up too.
func (m *Manager) Remove(ctx context.Context, s Scope) error {
	group, err := s.Path()
	if err != nil {
		return err
	}
	lock := m.lock(s.Unit)
	lock.Lock()
	defer lock.Unlock()
	if err := errors.Join(m.groups.Kill(group), failKilled.Hit()); err != nil {
		return fmt.Errorf("scope %s: %w", s.Unit, err)
	}
	begin := time.Now()
	for wait, told := time.Millisecond, false; m.there(group); wait = min(2*wait, 50*time.Millisecond) {
		if !told && time.Since(begin) > 300*time.Millisecond {
			told = true
			var job dbus.ObjectPath
			if err := m.call(ctx, manager+"StopUnit", []any{&job}, s.Unit, "replace"); is(err, "NoSuchUnit") {
				break // of a boot or a driver before; nobody watches it
			} else if err != nil {
				return fmt.Errorf("scope %s: %w", s.Unit, err)
			}
		}
		if time.Since(begin) > existLimit {
			return errs.Unavailable.Errorf("scope %s: systemd does not let go of it within %v: see `systemctl status %s`", s.Unit, existLimit, s.Unit)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	return m.groups.Remove(group)
}

// there says whether a group is in the unified tree.
func (m *Manager) there(group string) bool {
	_, err := os.Lstat(m.groups.Unified + group)
	return !errors.Is(err, os.ErrNotExist)
}

// lock is a unit's; some share one.
func (m *Manager) lock(unit string) *sync.Mutex {
	h := fnv.New32a()
	_, _ = h.Write([]byte(unit)) // never fails
	return &m.locks[h.Sum32()%uint32(len(m.locks))]
}
