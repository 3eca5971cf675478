package pod

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

// alone is a manager that is asked for nothing of the node.
func alone() *Manager { return New(Config{}, nil, nil, nil) }

func TestFlightIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := alone()
		var made atomic.Int32
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				id, err := m.join(t.Context(), "k", time.Minute, func(context.Context) (string, error) {
					made.Add(1)
					time.Sleep(time.Second)
					return "one", nil
				})
				if id != "one" || err != nil {
					t.Errorf("%q, %v", id, err)
				}
			})
		}
		wg.Wait()
		if made.Load() != 1 {
			t.Errorf("%d were made", made.Load())
		}
		m.Close()
	})
}

// TestFlightOutlivesItsCaller: who leaves only stops waiting; the retry gets the result, and the work its own limit.
func TestFlightOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := alone()
		made := 0
		create := func(ctx context.Context) (string, error) {
			made++
			select {
			case <-time.After(10 * time.Second):
				return "one", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.join(ctx, "k", time.Minute, create); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if id, err := m.join(t.Context(), "k", time.Minute, create); id != "one" || err != nil || made != 1 {
			t.Errorf("%q, %v after %d", id, err, made)
		}
		start := time.Now()
		if _, err := m.join(t.Context(), "k", 3*time.Second, create); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		m.Close()
	})
}

func TestFlightFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := alone()
		_, err := m.join(t.Context(), "k", time.Minute, func(context.Context) (string, error) { panic("broken") })
		if !errors.Is(err, errs.Internal) {
			t.Errorf("a panic became %v", err)
		}
		// a failure is not remembered
		id, err := m.join(t.Context(), "k", time.Minute, func(context.Context) (string, error) { return "two", nil })
		if id != "two" || err != nil {
			t.Errorf("%q, %v", id, err)
		}
		m.Close()
	})
}

// TestCloseWaits: the daemon does not go while work goes on.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := alone()
		ended := false
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = m.join(ctx, "k", time.Minute, func(context.Context) (string, error) {
			time.Sleep(time.Second)
			ended = true
			return "", nil
		})
		m.Close()
		if !ended {
			t.Error("Close did not wait")
		}
	})
}
