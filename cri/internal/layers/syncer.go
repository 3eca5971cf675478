package layers

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// syncer makes a file system durable for many callers at once: those that come while one syncfs runs share the
// next one. An error is the callers' to act on: after a failed sync nothing says which data is lost (Linux 5.8
// reports each write-back error once per open descriptor, so the descriptor is kept).
type syncer struct {
	dir  *os.File
	turn chan struct{} // one syncfs at a time

	mu   sync.Mutex
	next *round
}

type round struct {
	done chan struct{}
	err  error
}

func newSyncer(root string) (*syncer, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	return &syncer{dir: f, turn: make(chan struct{}, 1)}, nil
}

// Sync returns when everything written to the file system before the call is on the disk.
func (y *syncer) Sync() error {
	y.mu.Lock()
	r, leader := y.next, false
	if r == nil {
		r, leader = &round{done: make(chan struct{})}, true
		y.next = r
	}
	y.mu.Unlock()
	if !leader {
		<-r.done
		return r.err
	}
	y.turn <- struct{}{}
	y.mu.Lock()
	y.next = nil // whoever comes from now on is too late for this round
	y.mu.Unlock()
	r.err = os.NewSyscallError("syncfs", unix.Syncfs(int(y.dir.Fd())))
	<-y.turn
	close(r.done)
	return r.err
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
