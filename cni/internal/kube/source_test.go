package kube

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-project/berth/cni/internal/netdconf"
)

// TestCheck: a source that every fabric of would be refused is not made.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		conf netdconf.Kubernetes
		want string
	}{
		{netdconf.Kubernetes{Topology: "reflector"}, `kubernetes.topology: "reflector" is none of [mesh reflectors none], nearest is "reflectors"`},
		{netdconf.Kubernetes{ASN: 23456}, "kubernetes.asn: 23456 is reserved"},
	} {
		if _, err := New(c.conf, "n1", nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c.conf, err, c.want)
		}
	}
	if err := Check(netdconf.Default().Kubernetes); err != nil {
		t.Error(err)
	}
}

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
