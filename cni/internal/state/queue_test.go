package state

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// waiters waits until n requests are queued.
func (q *Queue) waiters(t *testing.T, n int) {
	t.Helper()
	for range 1000 {
		q.mu.Lock()
		got := len(q.waiting)
		q.mu.Unlock()
		if got == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%d requests are not queued", n)
}

// TestQueueIsFair: requests get the lock in the order they came, though each holds it for long and together for longer than
// anybody's patience; one that nobody wants any more holds nobody up.
func TestQueueIsFair(t *testing.T) {
	const patience, hold = 150 * time.Millisecond, 40 * time.Millisecond
	dir, queue := t.TempDir(), &Queue{}
	open := func(wanted func() error) (*Store, error) {
		return Open(dir, "boot", patience, &Turn{Wanted: wanted, Queue: queue})
	}
	yes, gone := func() error { return nil }, errors.New("gone")
	first, err := open(yes)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			s, err := open(func() error {
				if i == 3 {
					return gone
				}
				return nil
			})
			if i == 3 {
				if !errors.Is(err, gone) {
					t.Errorf("one that nobody wants: %v", err)
				}
				return
			}
			if err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			time.Sleep(hold)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		queue.waiters(t, i+1)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if want := []int{0, 1, 2, 4, 5, 6, 7, 8, 9}; !slices.Equal(order, want) {
		t.Errorf("they came in the order %v, want %v", order, want)
	}
}

// TestQueueThatStands: when nobody gets on, all are told so after their patience, and the queue works afterwards.
func TestQueueThatStands(t *testing.T) {
	dir, queue := t.TempDir(), &Queue{}
	turn := func() *Turn { return &Turn{Wanted: func() error { return nil }, Queue: queue} }
	holder, err := Open(dir, "boot", time.Second, nil) // another process
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if _, err := Open(dir, "boot", 30*time.Millisecond, turn()); errs.Of(err) != errs.Unavailable {
				t.Error(fmt.Errorf("request %d: %w", i, err))
			}
		})
	}
	wg.Wait()
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := Open(dir, "boot", time.Second, turn())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
