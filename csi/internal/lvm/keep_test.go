package lvm

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/csi/internal/volgroup"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

const (
	mib  = 1 << 20
	mine = "berth.csi/p"
	one  = "v00000000000000000000000000000001"
	two  = "v00000000000000000000000000000002"
)

// with is a backend that has just been told r, so that it does not ask LVM.
func with(t *testing.T, thin string, r volgroup.Report) *Backend {
	t.Helper()
	g, err := volgroup.New("/nonexistent/lvm", "g")
	if err != nil {
		t.Fatal(err)
	}
	r.Writable, r.Whole, r.Extent = true, true, 4*mib
	return &Backend{group: g, thin: thin, tag: mine, extent: 4 * mib, last: r, lastTime: time.Now()}
}

func lv(name, pool string, size int64, tags ...string) volgroup.Volume {
	return volgroup.Volume{Name: name, Pool: pool, Size: size * mib, Tags: tags, Layout: []string{"linear"}}
}

func thinOf(size int64, data, metadata float64) volgroup.Volume {
	return volgroup.Volume{Name: "t", Size: size * mib, Layout: []string{"thin", "pool"}, Data: data, Metadata: metadata, Zeroing: true, ErrorsIfFull: true}
}

// TestLedger: what the pool has, what of it is free, and what of the promises to volumes one (10 MiB) and two (50 MiB) has
// no space yet.
func TestLedger(t *testing.T) {
	for _, c := range []struct {
		name                  string
		thin                  string
		free                  int64
		volumes               []volgroup.Volume
		total, left, unbacked int64
	}{
		{"thick, nothing made yet", "", 100, nil, 100, 100, 12 + 52},
		{"thick, one is made", "", 88, []volgroup.Volume{lv("berth-"+one, "", 12, mine)}, 100, 88, 52},
		{"thick, one is being made", "", 88, []volgroup.Volume{lv("berth-b-"+one, "", 12, mine)}, 100, 88, 52},
		{"thick, another's and trash", "", 40, []volgroup.Volume{lv("berth-"+one, "", 12, mine), lv("berth-x-old", "", 20, mine), lv("data", "", 28)}, 72, 40, 52},
		{"thick, one that only looks like ours", "", 88, []volgroup.Volume{lv("berth-"+one, "", 12, "theirs")}, 88, 88, 12 + 52},
		{"thin, empty", "t", 0, []volgroup.Volume{thinOf(200, 0, 0)}, 200, 200, 64},
		{"thin, a quarter is used", "t", 0, []volgroup.Volume{thinOf(200, 0.25, 0), lv("berth-"+one, "t", 12, mine)}, 200, 150, 14},
		{"thin, snapshots use more than was promised", "t", 0, []volgroup.Volume{thinOf(200, 0.5, 0)}, 200, 100, 0},
		{"thin, another's may grow", "t", 0, []volgroup.Volume{thinOf(200, 0, 0), lv("data", "t", 120)}, 80, 80, 64},
		{"thin, others have promised it all", "t", 0, []volgroup.Volume{thinOf(200, 0, 0), lv("data", "t", 500)}, 0, 0, 64},
		{"thin, an orphan may grow", "t", 0, []volgroup.Volume{thinOf(200, 0, 0), lv("berth-v00000000000000000000000000000009", "t", 40, mine)}, 200, 200, 104},
	} {
		b := with(t, c.thin, volgroup.Report{Free: c.free * mib, Volumes: c.volumes})
		s, err := b.Space(context.Background(), []volume.Spec{{ID: one, Capacity: 10 * mib}, {ID: two, Capacity: 50 * mib}})
		if err != nil || s.Total != c.total*mib || s.Free != c.left*mib || s.InodesFree != -1 {
			t.Errorf("%s: %+v, %v, want %d and %d MiB", c.name, s, err, c.total, c.left)
		}
		if s.Unbacked != c.unbacked*mib {
			t.Errorf("%s: %d MiB have no space yet, want %d", c.name, s.Unbacked/mib, c.unbacked)
		}
	}
}

// TestWatermarks: a thin pool is degraded from four fifths on, of data or metadata, and without metadata takes nothing
// new.
func TestWatermarks(t *testing.T) {
	for _, c := range []struct {
		data, metadata float64
		want           []string
		full           bool
	}{
		{0.79, 0.79, nil, false},
		{0.80, 0.10, []string{"PoolNearlyFull"}, false},
		{0.10, 0.85, []string{"MetadataNearlyFull"}, false},
		{1.00, 0.95, []string{"PoolNearlyFull", "MetadataNearlyFull"}, true},
	} {
		r := volgroup.Report{Volumes: []volgroup.Volume{thinOf(100, c.data, c.metadata)}}
		b := with(t, "t", r)
		var got []string
		for _, h := range b.Health(context.Background()) {
			got = append(got, h.Reason)
			if h.Fatal {
				t.Errorf("%+v is fatal", h)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("data %v, metadata %v: %v, want %v", c.data, c.metadata, got, c.want)
		}
		if err := b.roomForMetadata(r); (errs.Of(err) == errs.ResourceExhausted) != c.full {
			t.Errorf("metadata %v: %v", c.metadata, err)
		}
	}
	loose := thinOf(100, 0, 0)
	loose.ErrorsIfFull, loose.Zeroing = false, false
	all := with(t, "t", volgroup.Report{Volumes: []volgroup.Volume{loose}}).Health(context.Background())
	if len(all) != 2 || all[0].Reason != "QueuesWhenFull" || all[1].Reason != "ZeroingOff" {
		t.Errorf("a pool that neither fails nor zeroes: %+v", all)
	}
	if all := with(t, "t", volgroup.Report{}).Health(context.Background()); len(all) != 1 || !all[0].Fatal {
		t.Errorf("a thin pool that is gone: %+v", all)
	}
}

// TestOurs: what has not our tag is not ours, whatever it is called, and in the way of one of ours it is named.
func TestOurs(t *testing.T) {
	r := volgroup.Report{Volumes: []volgroup.Volume{
		lv("berth-"+one, "", 12, mine, "more"), lv("berth-"+two, "", 12, "berth.csi/q"), lv("berth-s1", "", 4, mine), lv("berth-b-"+two, "", 4, mine),
		lv("berth-x-"+two+"-abc", "", 4, mine), lv("root", "", 4, mine),
	}}
	b := with(t, "", r)
	if _, found, err := b.own(r, complete(one)); !found || err != nil {
		t.Errorf("ours: %v, %v", found, err)
	}
	if _, found, err := b.own(r, complete(two)); found || errs.Of(err) != errs.FailedPrecondition || !strings.Contains(err.Error(), mine) {
		t.Errorf("another pool's: %v, %v", found, err)
	}
	if _, found, err := b.own(r, "nobody"); found || err != nil {
		t.Errorf("nobody's: %v, %v", found, err)
	}
	names := make([]string, 0, 4)
	for _, v := range b.ours(r) {
		names = append(names, v.Name)
	}
	if want := []string{"berth-" + one, "berth-s1", "berth-b-" + two, "berth-x-" + two + "-abc"}; !slices.Equal(names, want) {
		t.Errorf("ours are %v, want %v", names, want)
	}
}

// TestThinPool: a thin pool that is not there is waited for, one that shows old blocks, or is none, is refused.
func TestThinPool(t *testing.T) {
	leaky := thinOf(100, 0, 0)
	leaky.Name, leaky.Zeroing = "leaky", false
	r := volgroup.Report{Volumes: []volgroup.Volume{thinOf(100, 0, 0), leaky, lv("linear", "", 4)}}
	for name, want := range map[string]errs.Class{"t": "", "leaky": errs.FailedPrecondition, "linear": errs.FailedPrecondition, "gone": errs.Unavailable} {
		if _, err := thinPool(r, Pool{Group: "g", Thin: name}); errs.Of(err) != want {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
