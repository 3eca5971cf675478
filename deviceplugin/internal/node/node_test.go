package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/proto/errs"
)

const profile = "origin: test\ndriver: {version: 580.1}\nmajors: {nvidia: 195, uvm: 510}\ngpus: [{count: 4, product: H100}]\nfabric: {}\n"

// lab is a node over a profile file and a clock of its own; rounds are made by hand.
type lab struct {
	*Node
	t   *testing.T
	dir string
	now time.Time
}

func (l *lab) set(text string) {
	l.t.Helper()
	at := filepath.Join(l.dir, "profile.yaml")
	if err := errors.Join(os.WriteFile(at+".tmp", []byte(text), 0o600), os.Rename(at+".tmp", at)); err != nil {
		l.t.Fatal(err)
	}
}

// up is a process's start: what is known before the driver answers.
func (l *lab) up(boot string) *State {
	l.t.Helper()
	src, err := fake.Open(filepath.Join(l.dir, "profile.yaml"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.Node = New(Config{
		Dir: filepath.Join(l.dir, "root"), BootID: boot, CDIDir: filepath.Join(l.dir, "cdi"), Poll: time.Second, Forget: time.Minute,
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return l.now }, Health: health.Rules{HoldDown: 10 * time.Second},
		Driver: Driver{Root: driver.Root{Host: l.dir, View: l.dir}, Dev: "/dev", DevView: filepath.Join(l.dir, "dev"), Majors: src.Majors, Optional: true},
	}, discovery.NewGuard(src, discovery.Limits{Inventory: 5 * time.Second, Sample: time.Second}))
	s, _ := l.State()
	return s
}

// look is one round, a second later.
func (l *lab) look() *State {
	l.now = l.now.Add(time.Second)
	l.round(l.t.Context())
	s, _ := l.State()
	return s
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), now: time.Unix(1_700_000_000, 0)}
	l.set(profile)
	return l
}

// TestCache: after a restart the list and the health of this boot are there before the driver answers; after a
// reboot the list alone.
func TestCache(t *testing.T) {
	l := newLab(t)
	if s := l.up("boot-1"); len(s.Inventory.GPUs) != 0 || s.Live {
		t.Fatalf("%+v", s)
	}
	l.set(profile + "faults: [{gpu: 2, sample: {remapFailed: true}}]\n")
	if s := l.look(); !s.Live || !s.Specified || len(s.Reasons) != 1 {
		t.Fatalf("%+v", s.Problems)
	}
	s := l.up("boot-1")
	if len(s.Inventory.GPUs) != 4 || s.Live || s.Specified || len(s.Reasons) != 1 || len(s.Plan.Resources[0].Devices) != 4 {
		t.Errorf("after a restart: %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := l.Await(ctx); errs.Of(err) != errs.Unavailable {
		t.Error("a list is enough to give devices away:", err)
	}
	if s := l.up("boot-2"); len(s.Inventory.GPUs) != 4 || len(s.Reasons) != 0 {
		t.Errorf("after a reboot: %+v", s)
	}
	file := filepath.Join(l.dir, "root/node.json")
	if err := os.WriteFile(file, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := l.up("boot-2"); len(s.Inventory.GPUs) != 0 {
		t.Errorf("with a damaged record: %+v", s)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error("the damaged record is still there")
	}
}

// TestGone: a GPU that is not listed stays, sick, until it is forgotten; one that comes back is watched first.
func TestGone(t *testing.T) {
	l := newLab(t)
	l.up("b")
	l.look()
	l.set(profile + "faults: [{gpu: 1, gone: true}]\n")
	s := l.look()
	if len(s.Inventory.GPUs) != 4 || len(s.Reasons) != 1 {
		t.Fatalf("%+v", s.Reasons)
	}
	l.set(profile)
	if s = l.look(); !strings.Contains(s.Reasons[s.Inventory.GPUs[1].UUID], "recovering") {
		t.Error(s.Reasons)
	}
	l.now = l.now.Add(time.Minute)
	if s = l.look(); len(s.Reasons) != 0 {
		t.Error(s.Reasons)
	}
	l.set(profile + "faults: [{gpu: 1, gone: true}]\n")
	l.look()
	l.now = l.now.Add(2 * time.Minute)
	if s = l.look(); len(s.Inventory.GPUs) != 3 {
		t.Error("it is not forgotten")
	}
}

// TestProblems: what an operator has to mend is named, and gone once it is mended.
func TestProblems(t *testing.T) {
	l := newLab(t)
	l.set(strings.ReplaceAll(profile, "nvidia: 195", "nvidia: 0"))
	l.up("b")
	s := l.look()
	if len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "modprobe nvidia") || s.Plan.Resources[0].Devices[0].Healthy() {
		t.Errorf("%q", s.Problems)
	}
	// a GPU whose node cannot be made keeps no other back
	l.set(profile)
	if err := os.MkdirAll(filepath.Join(l.dir, "dev/nvidia2/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = l.look()
	for i, d := range s.Plan.Resources[0].Devices {
		if d.Healthy() == (i == 2) || !s.Specified {
			t.Errorf("device %d: %q", i, d.Reason)
		}
	}
	if err := os.RemoveAll(filepath.Join(l.dir, "dev/nvidia2")); err != nil {
		t.Fatal(err)
	}
	if s = l.look(); !s.Specified || len(s.Problems) != 0 {
		t.Errorf("%q", s.Problems)
	}
	if err := os.Remove(filepath.Join(l.dir, "dev/nvidia0")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.dir, "cdi/berth-gpu.json")); err != nil {
		t.Fatal(err)
	}
	if s = l.look(); !s.Specified {
		t.Errorf("%q", s.Problems)
	}
	if _, err := os.Lstat(filepath.Join(l.dir, "dev/nvidia0")); err != nil {
		t.Error(err)
	}
}

// TestSetPolicy holds from the next round on.
func TestSetPolicy(t *testing.T) {
	l := newLab(t)
	l.up("b")
	l.look()
	l.SetPolicy(policy.Policy{Rules: []policy.Rule{{Name: "x.y/z", Sharing: policy.TimeSlicing, Replicas: 3}}})
	if s := l.look(); len(s.Plan.Resources) != 1 || s.Plan.Resources[0].Rule.Name != "x.y/z" || len(s.Plan.Resources[0].Devices) != 12 {
		t.Errorf("%+v", s.Plan)
	}
}

// TestRunEnds: every goroutine ends with the context, even with a source that hangs.
func TestRunEnds(t *testing.T) {
	l := newLab(t)
	l.set(profile + "hang: 1s\nfaults: [{gpu: 1, hang: 1s}]\n")
	l.up("b")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := l.Run(ctx); err != nil || time.Since(start) > 3*time.Second {
		t.Error(err, time.Since(start))
	}
}

// deaf is a source whose events fail while err is not nil.
type deaf struct {
	discovery.Source
	err error
}

func (d deaf) Events(ctx context.Context) ([]health.Event, error) {
	if d.err != nil {
		return nil, d.err
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestDeaf: that XIDs are not heard is a problem, until they are.
func TestDeaf(t *testing.T) {
	l := newLab(t)
	l.up("b")
	l.cfg.Poll = 20 * time.Millisecond
	src := l.src
	for _, err := range []error{errors.New("there is no kernel log"), nil} {
		l.src = deaf{src, err}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		l.listen(ctx)
		cancel()
		s := l.look()
		if all := strings.Join(s.Problems, "\n"); strings.Contains(all, "XIDs are not heard") != (err != nil) || err != nil && !strings.Contains(all, err.Error()) {
			t.Errorf("%v: %q", err, s.Problems)
		}
	}
}

// TestUnspecified: while the specification cannot be written no device is given away, at once and with the reason; what
// it names is looked at again without a change of anything else.
func TestUnspecified(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(l.dir, "cdi")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no directory can be made there
		t.Fatal(err)
	}
	l.up("b")
	s := l.look()
	for _, d := range s.Plan.Resources[0].Devices {
		if !strings.Contains(d.Reason, "CDI directory") {
			t.Errorf("%s: %q", d.ID, d.Reason)
		}
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := l.Await(ctx); errs.Of(err) != errs.Unavailable || !strings.Contains(err.Error(), "CDI directory") || time.Since(start) > time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if s = l.look(); !s.Specified || !s.Plan.Resources[0].Devices[0].Healthy() {
		t.Errorf("it is mended: %q", s.Problems)
	}
	if _, err := l.Await(ctx); err != nil {
		t.Error(err)
	}
	gone := filepath.Join(l.dir, "dev/nvidia0")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	l.look()
	l.now = l.now.Add(lookAgain)
	l.look()
	if _, err := os.Lstat(gone); err != nil {
		t.Error("a node that is deleted is not noticed:", err)
	}
}

// TestUVM: without nvidia-uvm no container computes, and so none gets a GPU for it.
func TestUVM(t *testing.T) {
	l := newLab(t)
	l.set(strings.ReplaceAll(profile, "uvm: 510", "uvm: 0"))
	l.up("b")
	l.cdi.cfg.Capabilities = []driver.Capability{driver.Utility, driver.Compute}
	s := l.look()
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "modprobe nvidia-uvm") || !strings.Contains(s.Plan.Resources[0].Devices[0].Reason, "modprobe nvidia-uvm") {
		t.Errorf("%q, %+v", s.Problems, s.Plan.Resources[0].Devices[0])
	}
	l.cdi.cfg.Capabilities = []driver.Capability{driver.Utility}
	if s = l.look(); len(s.Problems) != 0 || !s.Plan.Resources[0].Devices[0].Healthy() {
		t.Errorf("nobody is to compute: %q", s.Problems)
	}
	l.cdi.cfg.Capabilities = []driver.Capability{driver.Compute}
	l.set(profile)
	if s = l.look(); len(s.Problems) != 0 || !s.Plan.Resources[0].Devices[0].Healthy() {
		t.Errorf("it was loaded: %q", s.Problems)
	}
}

// TestBoot: what is known from before a reboot is not judged while the driver may still come up.
func TestBoot(t *testing.T) {
	l := newLab(t)
	l.up("boot-1")
	l.look()
	l.set(profile + "hang: 1s\nfaults: [{gpu: 1, sample: {lost: true}}]\n")
	l.up("boot-2")
	if s := l.look(); s.Live || len(s.Inventory.GPUs) != 4 || len(s.Reasons) != 0 {
		t.Errorf("the driver is slow: %+v", s.Reasons)
	}
	s := l.look()
	for end := time.Now().Add(5 * time.Second); !s.Live && time.Now().Before(end); s = l.look() {
		time.Sleep(10 * time.Millisecond)
	}
	if !s.Live || len(s.Reasons) != 1 {
		t.Errorf("it is up: live %v, %v", s.Live, s.Reasons)
	}
	l.set(profile)
	l.up("boot-3")
	l.cfg.Start = 10 * time.Second
	if err := os.Remove(filepath.Join(l.dir, "profile.yaml")); err != nil { // every call fails
		t.Fatal(err)
	}
	if s = l.look(); s.Live || len(s.Problems) == 0 || len(s.Reasons) != 0 {
		t.Errorf("it is not loaded yet: %q, %v", s.Problems, s.Reasons)
	}
	l.now = l.now.Add(l.cfg.Start)
	if s = l.look(); s.Live || len(s.Reasons) != 4 {
		t.Errorf("it does not come: %v", s.Reasons)
	}
}

// TestMPSMemory: without NVML nobody knows how much of a GPU is one client's, and so no client gets any.
func TestMPSMemory(t *testing.T) {
	l := newLab(t)
	l.up("b")
	rule := policy.Rule{Name: "x.y/mps", Sharing: policy.MPS, Replicas: 2}
	for memory, want := range map[uint64]string{0: "memory is not known", 1 << 30: ""} {
		rule.Memory = memory
		l.SetPolicy(policy.Policy{Rules: []policy.Rule{rule}})
		if d := l.look().Plan.Resources[0].Devices[0]; d.Healthy() != (want == "") || !strings.Contains(d.Reason, want) {
			t.Errorf("%d bytes: %q", memory, d.Reason)
		}
	}
}
