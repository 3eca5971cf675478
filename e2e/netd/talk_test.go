package netd

import (
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth/e2e/netcluster"
)

// talk is pings between pods, from the first to each other, until it is ended.
type talk struct {
	stop       chan struct{}
	wg         sync.WaitGroup
	mu         sync.Mutex
	lost, sent int
}

func startTalk(t *testing.T, pods []*netcluster.Pod) *talk {
	t.Helper()
	k := &talk{stop: make(chan struct{})}
	for i, from := range pods {
		to := pods[(i+1)%len(pods)]
		k.wg.Go(func() {
			for {
				select {
				case <-k.stop:
					return
				case <-time.After(50 * time.Millisecond):
				}
				err := ping(from.NS, to.IP)
				k.mu.Lock()
				k.sent++
				if err != nil {
					k.lost++
				}
				k.mu.Unlock()
			}
		})
	}
	return k
}

func (k *talk) end() (lost, sent int) {
	close(k.stop)
	k.wg.Wait()
	return k.lost, k.sent
}
