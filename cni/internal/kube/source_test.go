package kube

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestFirstListMayTakeLonger: a server that needs 90 s for a list gets them in the end, and after a list nothing is cut
// off. The clock is the test's own.
func TestFirstListMayTakeLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var listed atomic.Bool
		var took []int
		done := make(chan struct{})
		go func() {
			defer close(done)
			untilListed(ctx, listed.Load, func(ctx context.Context) {
				began := time.Now()
				if len(took) == 6 { // the last answers after 90 s
					time.Sleep(90 * time.Second)
					listed.Store(true)
				}
				<-ctx.Done()
				took = append(took, int(time.Since(began).Seconds()))
			})
		}()
		time.Sleep(time.Hour)
		cancel()
		<-done
		if len(took) != 7 || !slices.Equal(took[:6], []int{5, 10, 20, 40, 80, 120}) || took[6] < 3000 {
			t.Errorf("attempts of %v seconds", took)
		}
	})
}
