package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/proto/errs"
)

// lab is a manager that speaks to a fake process 1.
func lab(t *testing.T) (*Manager, *fake, *exec.Cmd) {
	t.Helper()
	f := newFake(t)
	address, daemon := bus(t, t.TempDir())
	t.Cleanup(func() { end(t, daemon) })
	f.serve(address)
	m, err := connect(t.Context(), address, f.groups)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m, f, daemon
}

func (f *fake) scope(id string) Scope {
	return Scope{Slice: f.root, Unit: "cri-berth-" + id + ".scope", Description: "pod test/" + id}
}

func (f *fake) pids(s Scope) []int { return f.groups.Pids("/" + f.root + "/" + s.Unit) }

// TestScope is a scope's life: it stays without containers, Ensure is idempotent, Remove ends what runs in it.
func TestScope(t *testing.T) {
	m, f, _ := lab(t)
	s := f.scope("life")
	for range 3 {
		if err := m.Ensure(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	held := f.pids(s)
	if len(held) != 1 || len(f.started) != 1 {
		t.Fatalf("processes %v after %d requests, want one after one", held, len(f.started))
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", held[0]))
	args, aerr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", held[0]))
	if err != nil || aerr != nil || string(comm) != "berth-hold\n" || string(args) != "berth: pod test/life\x00" {
		t.Errorf("the holder is %q, %q (%v %v)", comm, args, err, aerr)
	}
	time.Sleep(50 * time.Millisecond)
	if now := f.pids(s); len(now) != 1 || now[0] != held[0] {
		t.Errorf("the holder did not stay: %v", now)
	}
	p := f.started[0]
	for k, want := range map[string]any{"Delegate": true, "Slice": f.root, "TasksMax": uint64(math.MaxUint64), "DefaultDependencies": false, "CollectMode": "inactive-or-failed"} {
		if p[k] != want {
			t.Errorf("property %s is %v, want %v", k, p[k], want)
		}
	}
	for range 2 {
		if err := m.Remove(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", held[0])); err == nil {
		t.Error("the holder lives")
	}
}

// killHolder kills a scope's holder and waits for its end.
func (f *fake) killHolder(m *Manager, s Scope) {
	f.t.Helper()
	group := "/" + f.root + "/" + s.Unit + hold
	for _, pid := range f.groups.Pids(group) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			f.t.Fatal(err)
		}
	}
	for m.populated(group) {
		time.Sleep(time.Millisecond)
	}
}

// TestScopeAgain: one whose holder was killed is made anew, and one in which a container runs gets a new holder only.
func TestScopeAgain(t *testing.T) {
	m, f, _ := lab(t)
	s := f.scope("again")
	if err := m.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.linger = 5 // a unit that has ended is loaded for a moment: UnitExists
	f.mu.Unlock()
	f.killHolder(m, s)
	if err := m.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	group := "/" + f.root + "/" + s.Unit
	if err := os.Mkdir(f.groups.Unified+group+"/container", 0o755); err != nil {
		t.Fatal(err)
	}
	container := exec.Command("sleep", "1000")
	if err := container.Start(); err != nil {
		t.Fatal(err)
	}
	go container.Wait() //nolint:errcheck // killed by Remove
	if err := os.WriteFile(f.groups.Unified+group+"/container/cgroup.procs", fmt.Append(nil, container.Process.Pid), 0o644); err != nil {
		t.Fatal(err)
	}
	asked := len(f.started)
	f.killHolder(m, s)
	if err := m.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := f.pids(s); len(got) != 2 || len(f.started) != asked {
		t.Errorf("processes %v after %d further requests, want the container and a holder after none", got, len(f.started)-asked)
	}
	if err := m.Remove(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// TestStarterDies: the process that opens a scope goes with the daemon; here its pipe is closed as the kernel would.
func TestStarterDies(t *testing.T) {
	image, err := holder()
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close() //nolint:errcheck // a memfd
	starter, err := run(image, "starter", -1, false)
	if err != nil {
		t.Fatal(err)
	}
	starter.end()
	if st := starter.cmd.ProcessState; !st.Exited() || st.ExitCode() != 0 {
		t.Errorf("it ended with %v, want exit 0", st)
	}
}

// TestAtOnce: sixteen callers make sixteen scopes, four each, and one scope is made once.
func TestAtOnce(t *testing.T) {
	m, f, _ := lab(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if err := m.Ensure(t.Context(), f.scope(fmt.Sprint(i%16))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(f.started) != 16 {
		t.Errorf("%d requests for 16 scopes", len(f.started))
	}
	for i := range 16 {
		wg.Go(func() {
			if err := m.Remove(t.Context(), f.scope(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestRefused: what systemd refuses is said in its words, with the unit, and nothing is left.
func TestRefused(t *testing.T) {
	m, f, _ := lab(t)
	f.mu.Lock()
	f.refuse = errors.New("Slice berth.slice is masked")
	f.mu.Unlock()
	err := m.Ensure(t.Context(), f.scope("refused"))
	if err == nil || !strings.Contains(err.Error(), "is masked") || !strings.Contains(err.Error(), "cri-berth-refused.scope") {
		t.Errorf("it says %v", err)
	}
	if err := m.Ensure(t.Context(), Scope{Slice: "/kubepods/pod1", Unit: "x.scope"}); !errors.Is(err, errs.InvalidArgument) {
		t.Errorf("a parent that is no slice: %v", err)
	}
}

// TestBusRestarts: a bus that is started again is connected to again; one that is gone is named.
func TestBusRestarts(t *testing.T) {
	f := newFake(t)
	dir := t.TempDir()
	address, first := bus(t, dir)
	f.serve(address)
	m, err := connect(t.Context(), address, f.groups)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	end(t, first)
	if _, err := m.Version(t.Context()); err == nil {
		t.Error("systemd answers without a bus")
	}
	_, second := bus(t, dir)
	t.Cleanup(func() { end(t, second) })
	f.serve(address)
	s := f.scope("restarted")
	if err := errors.Join(m.Ensure(t.Context(), s), m.Remove(t.Context(), s)); err != nil {
		t.Error(err)
	}
}

// TestBusHangs: a bus that says nothing costs a call its time and no more; a scope that is well, and the removal of one that
// systemd lets go of, need no bus.
func TestBusHangs(t *testing.T) {
	m, f, daemon := lab(t)
	s := f.scope("hang")
	if err := m.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer daemon.Process.Signal(unix.SIGCONT) //nolint:errcheck // it is ended next
	if err := m.Ensure(t.Context(), s); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := m.Ensure(ctx, f.scope("other")); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 2*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
	if err := m.Remove(t.Context(), s); err != nil {
		t.Error(err)
	}
	if err := daemon.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the request that was given up is heard late: its starter is gone by then
	if err := m.Remove(t.Context(), f.scope("other")); err != nil {
		t.Error(err)
	}
}

// TestNoSystemd: without systemd or its bus the driver is refused, and the way out is named.
func TestNoSystemd(t *testing.T) {
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(booted); err != nil {
		_, err := New(t.Context(), groups)
		if !errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "set cgroup.driver to cgroupfs") {
			t.Errorf("it says %v", err)
		}
	}
	if _, err := connect(t.Context(), "unix:path="+t.TempDir()+"/none", groups); !errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "system bus") {
		t.Errorf("without a bus it says %v", err)
	}
	if _, err := connect(t.Context(), Bus, &cgroup.Layout{}); !errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "unified") {
		t.Errorf("without a unified tree it says %v", err)
	}
}
