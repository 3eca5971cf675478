package volume

import (
	"math"
	"strings"
	"testing"

	"github.com/berth-project/berth/proto/errs"
)

// shelf is a backend that is only asked what it can do.
type shelf struct {
	Backend
	traits Traits
}

func (shelf) CheckTuning(v Spec) error {
	if len(v.Tuning) > 0 {
		return errs.InvalidArgument.Errorf("mutable_parameters")
	}
	return nil
}

func (s shelf) Traits() Traits { return s.traits }

func loopPool() *Pool {
	return &Pool{Name: "p", Kind: "loop", Overcommit: 1, Backend: shelf{traits: Traits{Block: true, FSTypes: []string{"ext4", "xfs"}, MinSize: 1 << 20, MinOf: map[string]int64{"ext4": 8 << 20, "xfs": 300 << 20}}}}
}

// TestDesign is what a new volume becomes, by request and source.
func TestDesign(t *testing.T) {
	const gib = 1 << 30
	src := origin{volume: Volume{ID: "v1", Pool: "p", Capacity: gib, FSType: "xfs"}}
	for _, c := range []struct {
		name  string
		r     CreateRequest
		from  origin
		bytes int64
		fs    string
		class errs.Class
	}{
		{"default size", CreateRequest{}, origin{}, DefaultSize, "ext4", ""},
		{"default size within the limit", CreateRequest{Limit: 100 << 20}, origin{}, 100 << 20, "ext4", ""},
		{"exactly what is asked for", CreateRequest{Required: gib + 1}, origin{}, gib + 1, "ext4", ""},
		{"the least of ext4", CreateRequest{Required: 1}, origin{}, 8 << 20, "ext4", ""},
		{"the least of xfs", CreateRequest{Required: 1, FSType: "xfs"}, origin{}, 300 << 20, "xfs", ""},
		{"xfs above its limit", CreateRequest{Limit: 100 << 20, FSType: "xfs"}, origin{}, 0, "", errs.OutOfRange},
		{"raw block", CreateRequest{Required: 5, Block: true}, origin{}, 1 << 20, "", ""},
		{"a clone has its source's size", CreateRequest{Source: Source{Volume: "v1"}}, src, gib, "xfs", ""},
		{"a clone may be larger", CreateRequest{Source: Source{Volume: "v1"}, Required: 2 * gib}, src, 2 * gib, "xfs", ""},
		{"and not smaller", CreateRequest{Source: Source{Volume: "v1"}, Required: 5}, src, 0, "", errs.OutOfRange},
		{"nor of another kind", CreateRequest{Source: Source{Volume: "v1"}, FSType: "ext4"}, src, 0, "", errs.InvalidArgument},
		{"an unknown file system", CreateRequest{FSType: "ntfs"}, origin{}, 0, "", errs.InvalidArgument},
		{"inline where it is not allowed", CreateRequest{Inline: true}, origin{}, 0, "", errs.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := design(loopPool(), c.r, c.from)
			if errs.Of(err) != c.class || err == nil && (v.Capacity != c.bytes || v.FSType != c.fs || v.Phase != Creating) {
				t.Errorf("%+v, %v; want %d bytes of %q, class %q", v, err, c.bytes, c.fs, c.class)
			}
		})
	}
}

// TestLedger: what is free is the lesser of what the operator allows and what the disk has.
func TestLedger(t *testing.T) {
	m := &Manager{volumes: map[string]Volume{
		"a": {ID: "a", Pool: "p", Capacity: 100, Inherited: 20}, "b": {ID: "b", Pool: "other", Capacity: 1000},
	}, snapshots: map[string]Snapshot{"s": {Pool: "p", Held: 30}}}
	for _, c := range []struct {
		name string
		pool Pool
		s    poolState
		free int64
	}{
		{"by size", Pool{Name: "p", Size: 500, Overcommit: 1}, poolState{space: Space{Total: 10_000, Free: 10_000}}, 350},
		{"by the disk", Pool{Name: "p", Size: 500, Overcommit: 1}, poolState{space: Space{Total: 10_000, Free: 100}, unbacked: 60}, 40},
		{"without a size", Pool{Name: "p", KeepFree: 100, Overcommit: 1}, poolState{space: Space{Total: 1000, Free: 900}}, 750},
		{"overcommitted", Pool{Name: "p", Size: 500, Overcommit: 3}, poolState{space: Space{Total: 500, Free: 1}}, 1350},
		{"overcommitted and full", Pool{Name: "p", Size: 500, KeepFree: 10, Overcommit: 3}, poolState{space: Space{Total: 500, Free: 10}}, 0},
		{"promised more than there is", Pool{Name: "p", Size: 100, Overcommit: 1}, poolState{space: Space{Total: 500, Free: 500}}, 0},
	} {
		if got := m.ledgerLocked(&c.pool, c.s).free(); got != c.free {
			t.Errorf("%s: %d are free, want %d", c.name, got, c.free)
		}
	}
	if l := (ledger{limit: math.MaxInt64, physical: 5}); l.free() != 5 {
		t.Error(l.free())
	}
}

// TestCharged: what a snapshot or a clone of a clone holds raises the limits of all that it may have been written in.
func TestCharged(t *testing.T) {
	m := &Manager{volumes: map[string]Volume{
		"a": {ID: "a", Capacity: 100}, "b": {ID: "b", Capacity: 100, Inherited: 40, Origins: []string{"a"}},
		"c": {ID: "c", Capacity: 100, Inherited: 70, Origins: []string{"a", "b"}},
	}, snapshots: map[string]Snapshot{"s": {Held: 5, Origins: []string{"a", "b"}}}}
	for id, want := range map[string]int64{"a": 115, "b": 75, "c": 0} {
		if got := m.spec(m.volumes[id]).Held; got != want {
			t.Errorf("%s: %d held, want %d", id, got, want)
		}
	}
}

// FuzzIDs: whatever a name is, its id has our form, and nothing of the name is in it.
func FuzzIDs(f *testing.F) {
	for _, s := range []string{"", "pvc-1", "../../etc/passwd", "a\x00b", strings.Repeat("x", 129), "v" + strings.Repeat("0", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for _, kind := range []string{volumeKind, snapshotKind, groupKind} {
			if id := newID(kind, name); !IsID(id) || len(name) > 8 && strings.Contains(id, name) {
				t.Errorf("the id of %q is %q", name, id)
			}
		}
	})
}

// FuzzPaths: no path leads out of the kubelet's directory.
func FuzzPaths(f *testing.F) {
	dir := f.TempDir()
	m := &Manager{conf: Config{KubeletDir: dir}}
	for _, s := range []string{"", "/", "/etc/passwd", dir, dir + "/..", dir + "/../x", dir + "/a/../../x", dir + "/a\x00", dir + "//a", dir + "/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		p, err := m.open(path)
		if err != nil {
			return
		}
		defer p.close()
		if !strings.HasPrefix(p.path, dir+"/") || strings.ContainsAny(p.base, "/\x00") || p.base == ".." || p.base == "." {
			t.Errorf("%q leads to %q in %q", path, p.base, p.parent.Name())
		}
	})
}
