package shims

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// install puts a copy of the supervisor at path as an upgrade does: written beside it, then renamed over it.
func install(t *testing.T, path string) {
	t.Helper()
	from, err := os.Open(supervisor)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close() //nolint:errcheck // read only
	to, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close(), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// TestUpgradeDrains: after an upgrade the old supervisor keeps its pods and gets no new ones, and ends with the last of
// its own; without one it goes on as before.
func TestUpgradeDrains(t *testing.T) {
	b := newBench(t)
	binary := filepath.Join(b.dir, "berth-shim")
	install(t, binary)
	b.Pool = b.pool(binary)
	b.makePod("p1")
	runs := b.startContainer("p1", "runs", "sleep", "100")
	old := b.pid(b.shim("p1"))
	next := func() {
		b.Close()
		b.Pool = b.pool(binary)
		found, err := b.Recover(t.Context(), nil)
		if err != nil || len(found.Pods) == 0 || found.Containers["runs"].Pid != runs.Pid {
			t.Fatalf("%+v, %v", found, err)
		}
	}
	next() // the same build: it takes the next pod
	b.makePod("p2")
	if got := b.pid(b.shim("p2")); got != old {
		t.Errorf("p2 is with %d, want the supervisor of p1, %d: nothing was upgraded", got, old)
	}
	if err := b.RemovePod(t.Context(), "p2"); err != nil {
		t.Fatal(err)
	}
	install(t, binary)
	for range 2 { // the second daemon finds one that drains already
		next()
		b.makePod("p3")
		if got := b.pid(b.shim("p3")); got == old {
			t.Errorf("p3 is with %d, which is of the old build", got)
		}
		if err := b.RemovePod(t.Context(), "p3"); err != nil {
			t.Fatal(err)
		}
	}
	gone := b.shim("p1").dir
	if err := b.Signal("runs", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("runs"); x.Code != 137 {
		t.Errorf("%+v", x)
	}
	b.clear("p1", "runs")
	for n := 0; ; n++ {
		if _, err := os.Stat(gone); errors.Is(err, os.ErrNotExist) && unix.Kill(old, 0) != nil {
			break
		}
		if n > 300 {
			t.Fatalf("supervisor %d has nothing left and is still there", old)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestIdleShimsEnd: of supervisors that have nothing a new daemon keeps one, and that only if no other takes pods.
func TestIdleShimsEnd(t *testing.T) {
	b := newBench(t)
	for _, id := range []string{"p1", "p2", "p3"} { // two to a supervisor
		b.makePod(id)
	}
	remove := func(ids ...string) {
		for _, id := range ids {
			if err := b.RemovePod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := func(want int) {
		t.Helper()
		b.Close()
		b.Pool = b.pool(supervisor)
		if _, err := b.Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; n++ {
			ents, err := os.ReadDir(b.cfg.Dir)
			if err == nil && len(ents) == want {
				return
			}
			if n > 300 {
				t.Fatalf("%d supervisors, %v; want %d", len(ents), err, want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	next(2)
	remove("p3")
	next(1)
	b.makePod("p4") // the first one is full
	next(2)
	remove("p1", "p2", "p4")
	next(1)
	b.makePod("p5")
	b.clear("p5", "none")
}
