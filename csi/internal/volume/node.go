package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/errs"
)

var growAfter = failpoint.New("csi.node_expand.after_grow")

// locate opens what is at a path and makes sure that it is the volume; else it is NotFound, whatever is there.
func (m *Manager) locate(ctx context.Context, id, path string) (v Volume, p *Pool, f *os.File, err error) {
	if v, p, err = m.volume(id); err != nil {
		return v, p, nil, err
	}
	f, at, err := m.look(path)
	if err != nil {
		return v, p, nil, errs.NotFound.Errorf("volume_path %.200q: %w", path, err)
	}
	ours, err := p.Backend.Holds(ctx, m.spec(v), at)
	if err == nil && (!ours || !at.Mounted) {
		err = errs.NotFound.Errorf("volume_path %s: volume %s is not there", path, id)
	}
	if err != nil {
		return v, p, nil, errors.Join(err, f.Close())
	}
	return v, p, f, nil
}

// Usage is how full a volume is, seen at a path where it is staged or published. Of raw block only the size is known.
func (m *Manager) Usage(ctx context.Context, id, path string) (Volume, Usage, error) {
	v, p, f, err := m.locate(ctx, id, path)
	if err != nil {
		return v, Usage{}, err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	if v.Block {
		return v, Usage{Total: v.Capacity}, nil
	}
	u, err := p.Backend.Usage(ctx, m.spec(v), f)
	return v, u, err
}

// Grow makes what is mounted at a path, or the device, as large as the volume is, and answers with its capacity.
func (m *Manager) Grow(ctx context.Context, id, path string, required int64) (int64, error) {
	end, err := m.begin(id, "NodeExpandVolume")
	if err != nil {
		return 0, err
	}
	defer end()
	v, p, f, err := m.locate(ctx, id, path)
	if err != nil && v.Block && v.Staged() && v.Node.Staging == path { // of raw block nothing is at the staging path
		f, err = nil, nil
	}
	if err != nil {
		return 0, err
	}
	if f != nil {
		defer f.Close() //nolint:errcheck // O_PATH
	}
	if required > v.Capacity {
		return 0, errs.OutOfRange.Errorf("capacity_range: volume %s has %d bytes, %d are asked for: ControllerExpandVolume must come first", id, v.Capacity, required)
	}
	if v.Block {
		f = nil
	}
	if v.Staged() && v.Node.ReadOnly {
		return 0, errs.FailedPrecondition.Errorf("volume %s is staged read-only: its file system cannot grow until it is staged for writing", id)
	}
	return v.Capacity, errors.Join(p.Backend.Grow(ctx, m.spec(v), f), growAfter.Hit())
}

// Health says what is wrong with a volume: its pool, its storage, its mount. Nothing: nil.
func (m *Manager) Health(ctx context.Context, id string) ([]Condition, error) {
	v, p, err := m.volume(id)
	if err != nil {
		return nil, err
	}
	all := p.Backend.Health(ctx)
	for _, c := range all {
		if c.Fatal {
			return all, nil
		}
	}
	there, err := p.Backend.Exists(ctx, id)
	if errs.Of(err) == errs.Unavailable {
		return append(all, Condition{Reason: "StorageUnreachable", Message: err.Error(), Fatal: true}), nil
	}
	if err != nil {
		return nil, err
	}
	if !there {
		return append(all, Condition{Reason: "StorageLost", Message: fmt.Sprintf("the storage of volume %s is gone from pool %s", id, p.Name), Fatal: true}), nil
	}
	if !v.Staged() || v.Block {
		return all, nil
	}
	return append(all, m.mountHealth(ctx, p, v)...), nil
}

func (m *Manager) mountHealth(ctx context.Context, p *Pool, v Volume) []Condition {
	f, err := m.mounted(ctx, p, v)
	if err != nil || f == nil {
		return []Condition{{Reason: "NotMounted", Message: fmt.Sprintf("volume %s should be mounted at %s and is not", v.ID, v.Node.Staging)}}
	}
	defer f.Close() //nolint:errcheck // O_PATH
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return []Condition{{Reason: "IOError", Message: fmt.Sprintf("volume %s: %v", v.ID, err), Fatal: true}}
	}
	if st.Flags&unix.ST_RDONLY != 0 && !v.Node.ReadOnly {
		return []Condition{{Reason: "ReadOnly", Message: fmt.Sprintf("the file system of volume %s has become read-only: see the kernel's log", v.ID)}}
	}
	return nil
}

// PoolHealth says what is wrong with each pool.
func (m *Manager) PoolHealth(ctx context.Context) map[string][]Condition {
	all := map[string][]Condition{}
	for _, p := range m.Pools() {
		if c := p.health(ctx); len(c) > 0 {
			all[p.Name] = c
		}
	}
	return all
}

// CheckFlags says whether mount flags would be taken.
func CheckFlags(flags []string) error {
	_, err := mount.Flags(flags)
	return err
}

// Supports says why a volume cannot be used so, or nil.
func (m *Manager) Supports(id string, use Use) (unsupported error, err error) {
	v, _, err := m.volume(id)
	if err != nil {
		return nil, err
	}
	return fits(v, use), nil
}
