package shims

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// impatient asks for a pod whose shim is stopped, and gives up.
func (b *bench) impatient(s *shim, id string) {
	b.t.Helper()
	pid := b.pid(s)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		b.t.Fatal(err)
	}
	awaitStopped(b.t, pid)
	ctx, cancel := context.WithTimeout(b.t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := b.RunPod(ctx, v1.RunPod{ID: id, Namespaces: []string{"net"}}, nil); !errors.Is(err, context.DeadlineExceeded) {
		b.t.Fatalf("a stopped shim made a pod: %v", err)
	}
	if b.Identities(id) != nil {
		b.t.Error("a pod that was only asked for has namespaces")
	}
	if _, err := b.Start(b.t.Context(), b.request(id, "early", "true"), nil); !errors.Is(err, errs.FailedPrecondition) {
		b.t.Errorf("a start in a pod that was only asked for: %v", err)
	}
}

// TestPodMadeTooLate: a pod that its shim makes when nobody waits for it any more is not left there.
func TestPodMadeTooLate(t *testing.T) {
	b := newBench(t)
	b.makePod("p1")
	s := b.shim("p1")
	for _, wakes := range []time.Duration{0, 300 * time.Millisecond} { // before the removal, during it
		b.impatient(s, "late")
		woken := make(chan error, 1)
		go func() {
			time.Sleep(wakes)
			woken <- unix.Kill(b.pid(s), unix.SIGCONT)
		}()
		if wakes == 0 {
			time.Sleep(300 * time.Millisecond)
		}
		if err := b.RemovePod(t.Context(), "late"); err != nil {
			t.Error(err)
		}
		if err := <-woken; err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // whatever it was asked has been done
		var hello v1.HelloReply
		if _, err := s.client().Call(t.Context(), v1.MethodHello, v1.Hello{Version: v1.Version}, nil, &hello); err != nil {
			t.Fatal(err)
		}
		if len(hello.Pods) != 1 || hello.Pods[0].ID != "p1" {
			t.Errorf("woken after %v the shim has %+v, want p1 alone", wakes, hello.Pods)
		}
		b.mu.Lock()
		if n := len(b.pods); n != 1 {
			t.Errorf("the pool has %d pods", n)
		}
		b.mu.Unlock()
	}
	b.clear("p1", "none")
}

// TestAskedShimDies: a pod that was only asked for goes with the shim that was asked, whether that is replaced or not.
func TestAskedShimDies(t *testing.T) {
	for name, others := range map[string]bool{"with another pod": true, "with nothing": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.makePod("p1")
			s := b.shim("p1")
			if !others {
				if err := b.RemovePod(t.Context(), "p1"); err != nil {
					t.Fatal(err)
				}
			}
			b.impatient(s, "p2")
			old := b.pid(s)
			if err := unix.Kill(old, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if others {
				b.awaitReplaced(s, old)
				if err := b.has(s, v1.HandlesRequest{Pod: "p2"}); !errors.Is(err, errs.NotFound) {
					t.Errorf("the successor has a pod that nobody made: %v", err)
				}
			}
			if err := b.RemovePod(t.Context(), "p2"); err != nil {
				t.Error(err)
			}
			if others {
				b.clear("p1", "none")
				return
			}
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat(s.dir); errors.Is(err, os.ErrNotExist) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("an empty shim is replaced, or not removed")
				}
			}
		})
	}
}
