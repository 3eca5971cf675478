package shims

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// awaitReplaced waits until a shim has another process than old.
func (b *bench) awaitReplaced(s *shim, old int) {
	b.t.Helper()
	for end := time.Now().Add(15 * time.Second); b.pid(s) == old; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatal("the shim is not replaced")
		}
	}
	s.life.RLock() // until it has all the old one had
	defer s.life.RUnlock()
}

// TestShimDiesAfterItsAnswer: a shim that dies when the next daemon has its answer, and not yet told the pool what a
// successor would have to know, costs nothing.
func TestShimDiesAfterItsAnswer(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	b.startContainer("p1", "c1", "sleep", "100")
	b.Close()
	b.Pool = b.pool(supervisor)
	if _, err := b.Recover(t.Context(), func(Found) {}); err != nil {
		t.Fatal(err)
	}
	s := b.shim("p1")
	old := b.pid(s)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.awaitReplaced(s, old)
	b.SetStatic(b.request("p1", "c1").Container, nil)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := s.client().Call(t.Context(), v1.MethodHandles, v1.HandlesRequest{Container: "c1"}, nil, nil); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the successor does not know the container: %v", err)
		}
	}
	if err := b.Signal("c1", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("c1"); x.Code != 137 && !x.Unknown {
		t.Errorf("%+v", x)
	}
	b.clear("p1", "c1")
}

// TestShimCannotStart: as long as no shim can be started in a dead one's place, it is tried; then its containers are adopted.
func TestShimCannotStart(t *testing.T) {
	b := newBench(t)
	program, away := filepath.Join(b.dir, "berth-shim"), filepath.Join(b.dir, "away")
	if err := os.Link(supervisor, program); err != nil {
		t.Skipf("this test links the program within one file system: %v", err)
	}
	b.Close()
	b.Pool = b.pool(program)
	b.makePod("p1")
	b.startContainer("p1", "c1", "sleep", "100")
	b.SetStatic(b.request("p1", "c1").Container, nil)
	if err := os.Rename(program, away); err != nil {
		t.Fatal(err)
	}
	s := b.shim("p1")
	old := b.pid(s)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // longer than the tries at once
	if b.pid(s) != old {
		t.Fatal("a shim without a program")
	}
	if err := os.Rename(away, program); err != nil {
		t.Fatal(err)
	}
	b.awaitReplaced(s, old)
	if b.Dead("c1") {
		t.Error("the container died meanwhile")
	}
	b.clear("p1", "c1")
}

// TestConnectionBreaksUnderExec: an exec that ends while nobody is connected has its end told all the same.
func TestConnectionBreaksUnderExec(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	b.startContainer("p1", "c1", "sleep", "100")
	h := b.handles("c1")
	raw, err := json.Marshal(&specs.Process{Args: []string{"/bin/busybox", "sleep", "50"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}})
	if err != nil {
		t.Fatal(err)
	}
	x, err := b.Exec(t.Context(), v1.Exec{Container: "c1", ID: "x1", Process: raw}, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := b.shim("p1")
	if err := unix.Kill(b.pid(s), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, b.pid(s))
	s.client().Close()
	if err := x.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(b.pid(s), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if end, err := x.Wait(ctx); err != nil || end.Code != 137 && !end.Unknown {
		t.Errorf("%+v, %v", end, err)
	}
	x.Close()
	b.mu.Lock()
	if len(b.execs) > 0 {
		t.Errorf("execs are remembered: %v", b.execs)
	}
	b.mu.Unlock()
	b.clear("p1", "c1")
}
