package volgroup

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth/proto/errs"
)

// TestParse reads what LVM 2.03.16 has said of a group with two linear volumes, a thin pool, a thin volume and a
// snapshot of it.
func TestParse(t *testing.T) {
	b, err := os.ReadFile("testdata/fullreport.json")
	if err != nil {
		t.Fatal(err)
	}
	r, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if r.UUID != "BI7cqs-B81x-fuaA-gsou-M1O3-Tss3-paSIlO" || r.Size != 2143289344 || r.Free != 1572864000 || r.Extent != 4<<20 || !r.Writable || !r.Whole {
		t.Errorf("the group: %+v", r)
	}
	if n := r.RoundUp(10 << 20); n != 12<<20 {
		t.Errorf("10 MiB take %d bytes", n)
	}
	names := make([]string, 0, len(r.Volumes))
	for _, v := range r.Volumes {
		names = append(names, v.Name)
	}
	if want := []string{"s1", "t1", "tp", "v1", "v2"}; !slices.Equal(names, want) {
		t.Fatalf("volumes %v, want %v", names, want)
	}
	pool, _ := r.Volume("tp")
	if !slices.Equal(pool.Layout, []string{"thin", "pool"}) || !pool.Zeroing || !pool.ErrorsIfFull || pool.Metadata < 0.111 || pool.Metadata > 0.112 || pool.Data != 0.25 {
		t.Errorf("the thin pool: %+v", pool)
	}
	thin, _ := r.Volume("t1")
	if thin.Pool != "tp" || thin.Size != 100<<20 || !slices.Contains(thin.Tags, "berth.csi/p") || len(thin.Tags) != 2 {
		t.Errorf("the thin volume: %+v", thin)
	}
	if v, found := r.Volume("v2"); !found || !slices.Equal(v.Extents, []string{"/dev/loop0:3-4", "/dev/loop0:9-9"}) {
		t.Errorf("a volume in two pieces: %+v", v)
	}
	if _, found := r.Volume("nobody"); found {
		t.Error("a volume that is not there is found")
	}
}

func TestParseRefusesNonsense(t *testing.T) {
	for _, text := range []string{
		`{`, `{"report":[{"vg":[{"vg_uuid":"x","vg_size":"1.00g","vg_free":"0","vg_extent_size":"4194304"}]}]}`,
		`{"report":[{"vg":[{"vg_uuid":"x","vg_size":"1","vg_free":"0","vg_extent_size":"0"}]}]}`,
		`{"report":[{"vg":[{"vg_uuid":"x","vg_size":"1","vg_free":"0","vg_extent_size":"1"}],"lv":[{"lv_name":"a","lv_size":"5","data_percent":"many"}]}]}`,
	} {
		if r, err := parse([]byte(text)); err == nil {
			t.Errorf("%s is %+v", text, r)
		}
	}
	if r, err := parse([]byte(`{"report":[]}`)); err != nil || r.UUID != "" {
		t.Errorf("no group is %+v, %v", r, err)
	}
}

// TestClassify: LVM's words, as 2.03.16 has them, get their class; what it says otherwise stays without one.
func TestClassify(t *testing.T) {
	for text, want := range map[string]errs.Class{
		`Volume group "g" not found`:                                                                    errs.Unavailable,
		`Cannot change VG g while PVs are missing.`:                                                     errs.Unavailable,
		`Volume group "g" has insufficient free space (3 extents): 25 required.`:                        errs.ResourceExhausted,
		`Insufficient suitable allocatable extents for logical volume v: 2 more required`:               errs.ResourceExhausted,
		`Cannot create new thin volume, free space in thin pool g/t reached threshold.`:                 errs.ResourceExhausted,
		`Logical volume g/v in use.`:                                                                    errs.FailedPrecondition,
		`Logical volume g/v contains a filesystem in use.`:                                              errs.FailedPrecondition,
		`Failed to find logical volume "g/v"`:                                                           errs.Internal,
		`Volume group "other" not found`:                                                                errs.Internal,
		`/dev/sdb: open failed: Read-only file system`:                                                  errs.Unavailable,
		`Option --snapshot is unsupported with thins.`:                                                  errs.Internal,
		`device-mapper: reload ioctl on g-v failed: Invalid argument Failed to activate new LV in use.`: errs.FailedPrecondition,
	} {
		if got := errs.Of(classify("g", errors.New(text))); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"vg0", "data.ssd", "a_b+c-d"} {
		if _, err := New("/usr/sbin/lvm", good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-x", "a/b", "a b", "..", ".", "a\n", "$(x)", strings.Repeat("x", 128)} {
		if _, err := New("/usr/sbin/lvm", bad); errs.Of(err) != errs.InvalidArgument {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := New("lvm", "vg0"); errs.Of(err) != errs.InvalidArgument {
		t.Errorf("a program without a path: %v", err)
	}
}

// TestRun: the program gets its arguments as they are, its output is bounded, and one that is not there is named.
func TestRun(t *testing.T) {
	g, err := New("/bin/echo", "g")
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.run(context.Background(), "lvs", "$HOME", "a b;c")
	if want := "lvs --config " + settings + " $HOME a b;c\n"; err != nil || string(out) != want {
		t.Errorf("it got %q, %v, want %q", out, err, want)
	}
	if n := g.Changes(); n != 2 {
		t.Errorf("%d changes after one command, want 2: one before and one after it", n)
	}
	g, err = New("/nonexistent/lvm", "g")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Report(context.Background()); errs.Of(err) != errs.FailedPrecondition || !strings.Contains(err.Error(), "install lvm2") {
		t.Errorf("without the program: %v", err)
	}
	b := &bounded{most: 4}
	if n, err := b.Write([]byte("123456")); n != 6 || err != nil || b.String() != "1234" || !b.cut {
		t.Errorf("bounded has %q, cut %v, said %d, %v", b.String(), b.cut, n, err)
	}
}
