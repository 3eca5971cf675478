package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/pod"
)

func collector(t *testing.T) (*Collector, string) {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	return New(pod.New(pod.Config{Root: dir, Log: log}, nil, nil, nil), nil, dir, log), dir
}

func TestParseNetDev(t *testing.T) {
	const header = "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
	got := parseNetDev(header +
		"    lo:   1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0\n" +
		"  eth0:18446744073709551615 7 3    4    5     6          7         8  9      10   11   12   13    14      15         16\n" +
		"broken: 1 2 x\n" +
		"  eth1:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n")
	if len(got) != 2 || got[0].name != "eth0" || got[1].name != "eth1" {
		t.Fatalf("%v", got)
	}
	if d := got[0]; d.rx.packets != 7 || d.rx.dropped != 4 || d.tx.packets != 10 || d.tx.dropped != 12 {
		t.Errorf("%+v", d)
	}
	i := got[0].usage()
	if i.GetRxBytes().GetValue() != math.MaxUint64 || i.GetRxErrors().GetValue() != 3 || i.GetTxBytes().GetValue() != 9 || i.GetTxErrors().GetValue() != 11 {
		t.Errorf("%v", i)
	}
	if got := parseNetDev(""); len(got) != 0 {
		t.Errorf("nothing became %v", got)
	}
	// the kernel's own
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range parseNetDev(string(b)) {
		if _, err := os.Stat("/sys/class/net/" + i.name); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("there is no %q", i.name)
		}
	}
}

// TestRates: a rate needs two readings a second apart, and a counter that went back gives none.
func TestRates(t *testing.T) {
	c, _ := collector(t)
	at := time.Now()
	for _, r := range []struct {
		after time.Duration
		usage uint64
		want  uint64
	}{
		{0, 1e9, 0},
		{500 * time.Millisecond, 2e9, 0},    // too early: what was known before
		{2 * time.Second, 2e9, 5e8},         // half a core
		{2500 * time.Millisecond, 9e9, 5e8}, // too early again
		{4 * time.Second, 6e9, 2e9},
		{6 * time.Second, 1e9, 0}, // a new container under an old id
		{8 * time.Second, 1e9, 0},
	} {
		if got := c.nanoCores("c", r.usage, at.Add(r.after)); got != r.want {
			t.Errorf("after %v: %d, want %d", r.after, got, r.want)
		}
	}
	if got := c.nanoCores("other", 5e9, at); got != 0 {
		t.Errorf("the first reading of another: %d", got)
	}
}

func TestPressure(t *testing.T) {
	p := psi(cgroup.Pressure{Some: cgroup.Stall{Total: 7, Avg10: 1.5, Avg60: 2, Avg300: 3}, Full: cgroup.Stall{Total: 5}})
	if p.GetSome().GetTotal() != 7000 || p.GetFull().GetTotal() != 5000 || p.GetSome().GetAvg10() != 1.5 || p.GetSome().GetAvg300() != 3 { // µs to ns
		t.Errorf("%v", p)
	}
}

func TestLimited(t *testing.T) {
	for _, c := range []struct{ limit, used, want uint64 }{{100, 30, 70}, {100, 100, 0}, {100, 101, 0}, {math.MaxUint64, 5, 0}} {
		if got := limited(c.limit, c.used).GetValue(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// TestLayer: what was written counts once, links to it do not, what vanishes is no error.
func TestLayer(t *testing.T) {
	c, dir := collector(t)
	upper := filepath.Join(dir, "containers", "c", "upper")
	file := filepath.Join(upper, "d", "file")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, make([]byte, 1<<20), 0o644), os.Link(file, file+"2"),
		os.Symlink("/etc", filepath.Join(upper, "link"))); err != nil {
		t.Fatal(err)
	}
	s, known := c.layer("c")
	if !known || s.bytes < 1<<20 || s.bytes > 1<<20+64<<10 || s.inodes != 4 {
		t.Errorf("%+v", s)
	}
	if again, _ := c.layer("c"); again != s {
		t.Errorf("measured in a request: %+v", again)
	}
	for i := range glance {
		if err := os.WriteFile(filepath.Join(dir, "containers", "c", "upper", fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	delete(c.sizes, "c") // as after a restart
	if s, known := c.layer("c"); known {
		t.Errorf("a large layer was walked in a request: %+v", s)
	}
	if s, known := c.measure(t.Context(), "c", math.MaxInt); !known || s.inodes != 4+glance {
		t.Errorf("%+v", s)
	}
	if gone, _ := c.layer("none"); gone.bytes != 0 || gone.inodes != 0 {
		t.Errorf("%+v", gone)
	}
	c.sample(t.Context())
	if len(c.sizes) != 0 { // no container is there
		t.Errorf("sizes of containers that are gone are kept: %v", c.sizes)
	}
}

// TestDescriptors: every metric is described once, with as many label keys as it has values.
func TestDescriptors(t *testing.T) {
	c, _ := collector(t)
	keys := map[string]int{}
	for _, d := range c.Descriptors() {
		if _, twice := keys[d.GetName()]; twice || d.GetHelp() == "" || !strings.HasPrefix(d.GetName(), "container_") {
			t.Errorf("%v", d)
		}
		keys[d.GetName()] = len(d.GetLabelKeys())
	}
	used := map[string]bool{}
	for _, m := range containerMetrics() {
		used[m.name] = true
		full := reading{limits: &cri.LinuxContainerResources{CpuQuota: -1, MemorySwapLimitInBytes: -1}}
		_ = m.all(full) // nothing known is no panic
		full.Devices, full.Huge = []cgroup.DeviceIO{{Major: 1}}, []cgroup.HugePages{{Size: "2MB"}}
		for _, r := range m.all(full) {
			if n := len(labels()) + len(r.with); n != keys[m.name] || len(m.extra) != len(r.with) {
				t.Errorf("%s has %d values, its descriptor %d keys", m.name, n, keys[m.name])
			}
		}
	}
	for _, m := range netMetrics() {
		used[m.name] = true
		if n := len(with(make([]string, len(labels())), "eth0")); n != keys[m.name] {
			t.Errorf("%s has %d values, its descriptor %d keys", m.name, n, keys[m.name])
		}
		_ = m.value(counters{})
	}
	for name := range maps.Keys(keys) {
		if !used[name] {
			t.Errorf("%s is described and never given", name)
		}
	}
}

// TestNegative: what the API has as "unlimited" is no huge number.
func TestNegative(t *testing.T) {
	r := reading{limits: &cri.LinuxContainerResources{CpuQuota: -1, MemorySwapLimitInBytes: -1}}
	r.MemoryLimit, r.PidsLimit = math.MaxUint64, math.MaxUint64
	for _, m := range containerMetrics() {
		for _, row := range m.all(r) {
			if row.value > 1<<62 {
				t.Errorf("%s is %d", m.name, row.value)
			}
		}
	}
}
