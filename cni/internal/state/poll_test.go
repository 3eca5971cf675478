package state

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// TestWaiting: who does not want the lock any more gets it neither at once nor later, who is out of patience is told so,
// and neither leaves a descriptor or a waiter behind.
func TestWaiting(t *testing.T) {
	dir := t.TempDir()
	wanted := &Turn{Wanted: func() error { return nil }}
	first, err := Open(dir, "boot", time.Second, wanted)
	if err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	if _, err := Open(dir, "boot", 20*time.Millisecond, wanted); errs.Of(err) != errs.Unavailable {
		t.Errorf("out of patience: %v", err)
	}
	gone := errors.New("gone")
	if _, err := Open(dir, "boot", time.Minute, &Turn{Wanted: func() error { return gone }}); !errors.Is(err, gone) {
		t.Errorf("not wanted while it is another's: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		s, err := Open(dir, "boot", time.Minute, wanted)
		if err == nil {
			err = s.Close()
		}
		got <- err
	}()
	time.Sleep(5 * time.Millisecond)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("the next one: %v", err)
	}
	if _, err := Open(dir, "boot", time.Minute, &Turn{Wanted: func() error { return gone }}); !errors.Is(err, gone) {
		t.Errorf("not wanted once it is held: %v", err)
	}
	if s, err := Open(dir, "boot", 0, wanted); err != nil {
		t.Errorf("the lock was kept: %v", err)
	} else if err := s.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); after >= before {
		t.Errorf("%d descriptors, %d while the lock was held", after, before)
	}
}

// descriptors counts those of lock files.
func descriptors(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasSuffix(to, "/lock") {
			n++
		}
	}
	return n
}
