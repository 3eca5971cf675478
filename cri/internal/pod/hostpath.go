package pod

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/berth-project/berth/proto/errs"
)

const (
	// lookupLimit is how long the file server below one host path may take to answer.
	lookupLimit = 10 * time.Second
	// mostLookups is how many paths are looked at together. Each takes a thread, for good if its server is gone; further
	// ones wait for their turn.
	mostLookups = 256
)

// lookups look at host paths, whose file servers (NFS, FUSE) may never answer. A path has one look at a time: who asks
// for it meanwhile waits for that one's answer, so that retries do not pile up. Nobody waits longer than limit.
type lookups struct {
	limit time.Duration
	turn  chan struct{} // filled by those that look

	mu      sync.Mutex
	running map[string]*lookup // by path
}

type lookup struct {
	done chan struct{}
	err  error
}

func newLookups() *lookups {
	return &lookups{limit: lookupLimit, turn: make(chan struct{}, mostLookups), running: map[string]*lookup{}}
}

// ensure sees that a host path exists, and makes a directory of one that does not, as peers do: the kubelet creates what
// should exist, other clients expect a directory. DeadlineExceeded if its file system does not answer.
func (l *lookups) ensure(ctx context.Context, path string) error {
	look := l.look(path)
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	select {
	case <-look.done:
		return look.err
	case <-ctx.Done():
		return errs.DeadlineExceeded.Errorf("%s: its file system does not answer (a server of NFS or FUSE that is gone?): %w", path, ctx.Err())
	}
}

// look begins to look at a path, or joins who does.
func (l *lookups) look(path string) *lookup {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := l.running[path]; have != nil {
		return have
	}
	look := &lookup{done: make(chan struct{})}
	l.running[path] = look
	go func() { // not waited for: see above
		l.turn <- struct{}{}
		look.err = ensurePath(path)
		<-l.turn
		l.mu.Lock()
		delete(l.running, path)
		l.mu.Unlock()
		close(look.done)
	}()
	return look
}

func ensurePath(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return nil //nolint:nilerr // what else is wrong with it the mount says
	}
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // as peers
		return errs.InvalidArgument.Wrap(err)
	}
	return nil
}
