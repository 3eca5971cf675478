package shims

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// has asks a shim for a pod or a container.
func (b *bench) has(s *shim, what v1.HandlesRequest) error {
	b.t.Helper()
	var reply v1.HandlesReply
	fds, err := s.client().Call(b.t.Context(), v1.MethodHandles, what, nil, &reply)
	closeAll(fds)
	return err
}

// awaitHas waits until a shim has it.
func (b *bench) awaitHas(s *shim, what v1.HandlesRequest) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := b.has(s, what)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%+v is not adopted: %v", what, err)
		}
	}
}

// kill ends a shim's process and waits for another one in its place.
func (b *bench) kill(s *shim) {
	b.t.Helper()
	old := b.pid(s)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	b.awaitReplaced(s, old)
}

// TestLogGone: a container whose log cannot be opened when its shim is replaced is adopted all the same. It is not held up by
// a pipe that nobody reads, and when the log can be opened it says what it lacks.
func TestLogGone(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	req := b.request("p1", "c1", "sh", "-c", "while :; do echo tick; usleep 1000; done")
	logs, away := filepath.Join(b.dir, "logs"), filepath.Join(b.dir, "away")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	req.LogDir = logs
	h := b.handles("c1")
	defer h.Close()
	if _, err := b.Start(t.Context(), req, h); err != nil {
		t.Fatal(err)
	}
	s := b.shim("p1")
	for n := 0; ; n++ { // it has begun
		if fi, err := os.Stat(filepath.Join(logs, "0.log")); err == nil && fi.Size() > 0 {
			break
		}
		if n > 500 {
			t.Fatal("it says nothing")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.Rename(logs, away); err != nil {
		t.Fatal(err)
	}
	b.kill(s)
	b.awaitHas(s, v1.HandlesRequest{Container: "c1"})
	time.Sleep(200 * time.Millisecond) // it says something that is lost
	if err := os.Rename(away, logs); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(logs, "0.log"))
		if before, after, ok := strings.Cut(string(text), " bytes of output are missing here: log directory"); ok && strings.Contains(before, " stdout F tick\n") && strings.Contains(after, " stdout F tick\n") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the log does not go on, or does not say what it lacks (%d bytes, %v)", len(text), err)
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

// TestOfferedAgain: what a replaced shim does not adopt at once it adopts as soon as it can.
func TestOfferedAgain(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	b.startContainer("p1", "c1", "sleep", "100")
	good := b.request("p1", "c1").Container
	bad := good
	bad.ExitFile = "" // no shim takes a container without one
	b.SetStatic(bad, nil)
	b.pretend("p1", 1)
	s := b.shim("p1")
	for range 2 { // the second one does not take them either
		b.kill(s)
		time.Sleep(300 * time.Millisecond)
	}
	if pod, c := b.has(s, v1.HandlesRequest{Pod: "p1"}), b.has(s, v1.HandlesRequest{Container: "c1"}); pod == nil || c == nil {
		t.Fatalf("this test wants them refused: %v, %v", pod, c)
	}
	b.SetStatic(good, nil)
	b.pretend("p1", 0)
	b.awaitHas(s, v1.HandlesRequest{Pod: "p1"})
	b.awaitHas(s, v1.HandlesRequest{Container: "c1"})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b.mu.Lock()
		left := len(b.insisting)
		b.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d are offered on and on", left)
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

// pretend gives a pod an init process that it has not, by which no shim takes it; 0 takes that back.
func (b *bench) pretend(pod string, pid int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods[pod].initPid = pid
}

// TestEndsUnadopted: the end of a container that no shim takes is told, and it can be removed.
func TestEndsUnadopted(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	b.startContainer("p1", "c1", "sleep", "100")
	bad := b.request("p1", "c1").Container
	bad.ExitFile = ""
	b.SetStatic(bad, nil)
	s := b.shim("p1")
	b.kill(s)
	if err := b.Signal("c1", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := b.awaitEnd("c1"); x.Code != 137 && !x.Unknown {
		t.Errorf("%+v", x)
	}
	b.clear("p1", "c1")
	if err := b.has(s, v1.HandlesRequest{Container: "c1"}); err == nil {
		t.Error("the shim has what was removed")
	}
}
