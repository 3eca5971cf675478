package layers

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/atomicfile"
	"github.com/berth-project/berth/proto/errs"
)

// Builder fills a layer's empty directory. It is called with a context that ends when nobody waits any more.
type Builder func(ctx context.Context, dir *os.File) (*Result, error)

// flight is a layer being built, however many wait for it. waiters and finished are guarded by Store.mu.
type flight struct {
	done     chan struct{}
	cancel   context.CancelFunc
	waiters  int
	finished bool
	err      error // valid after done
}

// Ensure returns when the layer id is staged or committed, with a reference on it for the caller. If it is not
// there, build makes it; callers that come meanwhile wait for that one, each as long as its own ctx lasts, and
// the work is cancelled when the last of them has left. The last to leave waits for the work to have stopped.
//
// When somebody else's build failed for a reason that may be theirs alone (their credentials, their registry),
// the caller's own is tried.
func (s *Store) Ensure(ctx context.Context, id string, build Builder) error {
	for {
		f, mine := s.join(id)
		if f == nil {
			return nil
		}
		if mine {
			work, cancel := context.WithCancel(context.WithoutCancel(ctx))
			s.launch(work, cancel, f, id, build)
		}
		err := s.await(ctx, f, id)
		if err == nil || mine || ctx.Err() != nil {
			return err
		}
		switch errs.Of(err) {
		case errs.Unauthenticated, errs.PermissionDenied, errs.NotFound, errs.Unavailable, errs.Canceled, errs.Aborted:
			continue
		}
		return err
	}
}

// join takes a reference (nil flight), or becomes a waiter of a flight that runs or (mine) is to be launched.
func (s *Store) join(id string) (f *flight, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[id]; l != nil {
		l.refs++
		return nil, false
	}
	if f = s.flights[id]; f == nil {
		f = &flight{done: make(chan struct{})}
		s.flights[id], mine = f, true
	}
	f.waiters++
	return f, mine
}

// launch starts the work. Its goroutine ends before the last waiter's Ensure returns.
func (s *Store) launch(ctx context.Context, cancel context.CancelFunc, f *flight, id string, build Builder) {
	s.mu.Lock()
	f.cancel = cancel
	if f.waiters == 0 { // everybody left before it began
		cancel()
	}
	s.mu.Unlock()
	go func() {
		defer cancel()
		l, err := s.build(ctx, id, build)
		s.mu.Lock()
		if s.flights[id] == f {
			delete(s.flights, id)
		}
		f.finished, f.err = true, err
		switch {
		case err != nil:
		case f.waiters == 0 || s.layers[id] != nil:
			_ = s.trash(l.dir, id) //nolint:errcheck // tmp is emptied at the next start
			f.err = cmpErr(ctx.Err(), errs.Canceled)
		default:
			l.refs = f.waiters
			s.layers[id] = l
		}
		s.mu.Unlock()
		close(f.done)
	}()
}

// await waits for f as long as ctx lasts.
func (s *Store) await(ctx context.Context, f *flight, id string) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	if f.finished {
		s.mu.Unlock()
		<-f.done
		if f.err == nil {
			s.Unref(id)
		}
		return ctx.Err()
	}
	f.waiters--
	last := f.waiters == 0
	if last {
		if s.flights[id] == f {
			delete(s.flights, id) // whoever comes now starts anew
		}
		if f.cancel != nil {
			f.cancel()
		}
	}
	s.mu.Unlock()
	if last {
		<-f.done
	}
	return ctx.Err()
}

// build makes one layer in the session's directory, or nothing.
func (s *Store) build(ctx context.Context, id string, build Builder) (*layer, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	dir := s.newDir()
	l, err := s.buildIn(ctx, dir, id, build)
	if err != nil {
		if terr := s.trash(dir, id); terr != nil {
			s.log.Warn("leftovers of a layer not removed", "layer", id, "err", terr)
		}
		return nil, diskError(err)
	}
	return l, nil
}

func (s *Store) newDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return filepath.Join(s.session, strconv.Itoa(s.serial))
}

func (s *Store) buildIn(ctx context.Context, dir, id string, build Builder) (*layer, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	content := filepath.Join(dir, contentName)
	if err := os.Mkdir(content, 0o755); err != nil { //nolint:gosec // what a container sees as its root
		return nil, err
	}
	if err := os.Chmod(content, 0o755); err != nil { //nolint:gosec // whatever the umask
		return nil, err
	}
	f, err := os.Open(content)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	res, err := guarded(ctx, f, build)
	if err != nil {
		return nil, err
	}
	if err := res.Seal(int(f.Fd())); err != nil {
		return nil, err
	}
	if err := futimens(int(f.Fd()), unix.Timespec{}, unix.Timespec{}); err != nil {
		return nil, err
	}
	l := &layer{info: Info{Version: 1, ID: id, Result: *res}, dir: dir, idle: time.Now()}
	b, err := json.Marshal(Info{Version: 1, ID: id, Result: res.Quote()})
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteSealed(filepath.Join(dir, recordName), b, 0o600); err != nil {
		return nil, err
	}
	return l, fpStaged.Hit()
}

// guarded turns a panic of a builder, which reads what strangers wrote, into an error.
func guarded(ctx context.Context, f *os.File, build Builder) (res *Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.Internal.Errorf("panic while unpacking: %v", p)
		}
	}()
	return build(ctx, f)
}

// diskError classes what the disk says; other errors have their class already.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.ResourceExhausted.Wrap(err)
	}
	return err
}
