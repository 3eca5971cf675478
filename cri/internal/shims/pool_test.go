package shims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

func TestStartAndEnd(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	if _, err := b.Start(t.Context(), b.request("none", "c0", "true"), nil); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("start in a pod that is not there: %v", err)
	}
	b.startContainer("p1", "c1", "sh", "-c", "exit 4")
	if x := b.awaitEnd("c1"); x.Code != 4 {
		t.Errorf("%+v", x)
	}
	if !b.Dead("c1") || !b.Dead("unknown") {
		t.Error("dead ones live")
	}
	if err := b.Signal("c1", unix.SIGTERM); err != nil {
		t.Errorf("signal to a dead one: %v", err)
	}
	if err := b.Signal("unknown", unix.SIGTERM); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal to nobody: %v", err)
	}
	b.clear("p1", "c1")
	b.clear("p1", "c1") // it is all gone: fine
	if _, err := b.Namespace("p1", "net"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a namespace of a removed pod: %v", err)
	}
}

// TestPodsPerShim: two fit into one, a burst does not start one each, a place that is free is taken.
func TestPodsPerShim(t *testing.T) {
	b := newBench(t)
	done := make(chan error, 5)
	for i := range 5 {
		go func() {
			done <- b.RunPod(t.Context(), v1.RunPod{ID: fmt.Sprintf("p%d", i), Namespaces: []string{"net"}}, nil)
		}()
	}
	for range 5 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.shims)
	}
	if count() != 3 {
		t.Errorf("5 pods in %d shims", count())
	}
	if err := b.RemovePod(t.Context(), "p0"); err != nil {
		t.Fatal(err)
	}
	b.makePod("p5")
	if count() != 3 {
		t.Errorf("a place was free, but there are %d shims", count())
	}
	for i := 1; i <= 5; i++ {
		if err := b.RemovePod(t.Context(), fmt.Sprintf("p%d", i)); err != nil {
			t.Error(err)
		}
	}
}

// TestRecover: the next daemon finds everything, and an end that nobody was told of.
func TestRecover(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	runs := b.startContainer("p1", "runs", "sleep", "100")
	b.startContainer("p1", "ends", "sh", "-c", "sleep 0.3; exit 6")
	b.Close()
	time.Sleep(600 * time.Millisecond)
	if err := os.MkdirAll(filepath.Join(b.dir, "shims", "gone"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.Pool = b.pool(supervisor)
	found, err := b.Recover(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pods, containers := found.Pods, found.Containers
	if found.Silent != 0 || len(pods) != 1 || len(containers) != 2 || containers["runs"].Pid != runs.Pid || containers["ends"].Exit == nil || containers["ends"].Exit.Code != 6 {
		t.Errorf("%+v %+v", pods, containers)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "shims", "gone")); !os.IsNotExist(err) {
		t.Errorf("the directory of a shim that is gone is there: %v", err)
	}
	ns, err := b.Namespace("p1", "net")
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	if err := b.Signal("runs", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("runs"); x.Code != 137 || x.Signal != 9 {
		t.Errorf("%+v", x)
	}
	if err := b.Delete(t.Context(), "ends"); err != nil {
		t.Error(err)
	}
	b.clear("p1", "runs")
}

// TestSilentShim: one that is stopped when the daemon starts is not taken for gone, and is taken back when it answers.
func TestSilentShim(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	runs := b.startContainer("p1", "runs", "sleep", "100")
	pid := b.pid(b.shim("p1"))
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, pid)
	b.Close()
	b.Pool = b.pool(supervisor)
	later := make(chan Found, 1)
	began := time.Now()
	found, err := b.Recover(t.Context(), func(f Found) { later <- f })
	if err != nil || found.Silent != 1 || len(found.Containers) != 0 {
		t.Fatalf("%+v, %v; want one silent shim", found, err)
	}
	if took := time.Since(began); took > 2*answerLimit {
		t.Errorf("the start waited %v for it", took)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	select {
	case f := <-later:
		if f.Silent != 0 || f.Containers["runs"].Pid != runs.Pid {
			t.Errorf("it came back with %+v", f)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it was not taken back")
	}
	if err := b.Signal("runs", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("runs"); x.Code != 137 {
		t.Errorf("%+v", x)
	}
	b.clear("p1", "runs")
}

// TestKilledShim: a new one adopts what it had; containers and their output go on, and their ends are known.
func TestKilledShim(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	st := b.startContainer("p1", "c1", "sh", "-c", "while :; do echo tick; usleep 20000; done")
	group := b.group + "/pods/c1"
	b.SetStatic(b.request("p1", "c1").Container, nil)
	s := b.shim("p1")
	old := b.pid(s)
	for round := range 3 {
		if err := unix.Kill(b.pid(s), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for n := 0; b.pid(s) == old; n++ {
			if n > 500 {
				t.Fatalf("round %d: the shim is not replaced", round)
			}
			time.Sleep(10 * time.Millisecond)
		}
		old = b.pid(s)
	}
	if b.Dead("c1") || len(b.groups.Pids(group)) == 0 {
		t.Fatal("the container died with its shim")
	}
	// what it says now is in the log too
	log := filepath.Join(b.dir, "containers", "c1", "0.log")
	before, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if now, err := os.Stat(log); err == nil && now.Size() > before.Size() {
			break
		}
		if n > 300 {
			t.Fatal("the log does not grow")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := unix.Kill(st.Pid, unix.SIGTERM); err != nil { // a shell that is pid 1 has no handler: nothing happens
		t.Fatal(err)
	}
	if err := b.Signal("c1", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("c1"); x.Code != 137 {
		t.Errorf("%+v", x)
	}
	b.clear("p1", "c1")
}

// TestKilledEmptyShim: nothing replaces a shim that has nothing, and nothing is left of it.
func TestKilledEmptyShim(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	s := b.shim("p1")
	if err := b.RemovePod(t.Context(), "p1"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(b.pid(s), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		_, err := os.Stat(s.dir)
		b.mu.Lock()
		left := len(b.shims)
		b.mu.Unlock()
		if os.IsNotExist(err) && left == 0 {
			break
		}
		if n > 300 {
			t.Fatalf("%v, %d shims", err, left)
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.makePod("p2")
	b.clear("p2", "none")
}

// awaitStopped waits until every thread of a process has met its SIGSTOP.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for range 500 {
		running := 0
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(stats) == 0 {
			t.Fatalf("process %d: %v", pid, err)
		}
		for _, f := range stats {
			if b, err := os.ReadFile(f); err == nil && !strings.Contains(string(b), ") T ") {
				running++
			}
		}
		if running == 0 {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("process %d does not stop", pid)
}

// TestHungShim: a call ends with its caller's time, signals need no shim, and when it wakes all is well.
func TestHungShim(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	b.startContainer("p1", "c1", "sleep", "100")
	s := b.shim("p1")
	if err := unix.Kill(b.pid(s), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, b.pid(s))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := b.ReopenLog(ctx, "c1"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if err := b.Signal("c1", unix.SIGKILL); err != nil {
		t.Error(err)
	}
	for n := 0; !b.Dead("c1"); n++ {
		if n > 300 {
			t.Fatal("the container of a hung shim cannot be killed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if x := b.ExitOf("c1"); x.Code != 137 && !x.Unknown {
		t.Errorf("the kernel's own word: %+v", x)
	}
	if err := unix.Kill(b.pid(s), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("c1"); x.Code != 137 {
		t.Errorf("%+v", x)
	}
	b.clear("p1", "c1")
}

// TestBadShim: a program that is none leaves no process, group or directory.
func TestBadShim(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct{ binary, what string }{{"/no/such/shim", "absent"}, {"/bin/true", "ends at once"}} {
		b.Pool.Close()
		b.Pool = b.pool(c.binary)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.RunPod(ctx, v1.RunPod{ID: "p1", Namespaces: []string{"net"}}, nil); err == nil {
			t.Errorf("a shim that is %s", c.what)
		}
		left, err := os.ReadDir(filepath.Join(b.dir, "shims"))
		if err != nil || len(left) != 0 {
			t.Errorf("%s: left behind %v, %v", c.what, left, err)
		}
		if pids := b.groups.Pids(b.group); len(pids) != 0 {
			t.Errorf("%s: processes %v", c.what, pids)
		}
	}
}
