package unpacker

import (
	"os"
	"sync"
	"testing"
)

// namespaces are those of the main thread.
func namespaces(t *testing.T) (all [4]string) {
	t.Helper()
	for i, kind := range []string{"mnt", "net", "ipc", "uts"} {
		var err error
		if all[i], err = os.Readlink("/proc/self/ns/" + kind); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestMainThreadStays: the thread that children come from is never the main one, which Go would keep, and which is what
// /proc/self shows of the daemon.
func TestMainThreadStays(t *testing.T) {
	before := namespaces(t)
	for range 100 {
		n := &nest{program: "/bin/true"}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := n.acquire(); err != nil {
					t.Error(err)
					return
				}
				n.release()
			})
		}
		wg.Wait()
		if now := namespaces(t); now != before {
			t.Fatalf("the main thread is in %v, was in %v", now, before)
		}
	}
}
