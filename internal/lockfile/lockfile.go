// Package lockfile keeps a second process away from a directory. It uses fcntl record locks (fcntl_locking(2)), not
// flock: a flock is shared with every child between fork and exec, so that for a moment it outlives a killed owner and
// a restart is refused. A record lock belongs to the process alone and ends with it.
//
// The rule of record locks: closing any descriptor of the file in the owning process gives the lock up. So nothing
// but this package opens the file, and it opens it once: what this process holds is remembered here.
package lockfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// own are the paths this process holds: the kernel would let it lock them again.
var own = struct {
	mu    sync.Mutex
	paths map[string]bool
}{paths: map[string]bool{}}

// Lock is a lock that is held. Close gives it up.
type Lock struct {
	path string
	f    *os.File
}

// Close gives the lock up.
func (l *Lock) Close() error {
	own.mu.Lock()
	defer own.mu.Unlock()
	delete(own.paths, l.path)
	return l.f.Close()
}

// Held is the error of a lock that somebody else has.
type Held struct {
	Path string
	Pid  int32 // of the owner; 0 where it is in another pid namespace
}

// Error names the owner and the file.
func (h *Held) Error() string { return fmt.Sprintf("process %d has %s locked", h.Pid, h.Path) }

// errAgain says that the lock is free by now.
var errAgain = errors.New("the lock was given up meanwhile")

// Take locks the file at path for this process, making it if needed. Where it is held already, by another process or by
// this one, the error is a *Held. It never waits.
func Take(path string) (*Lock, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.paths[path] {
		return nil, &Held{Path: path, Pid: int32(os.Getpid())} //nolint:gosec // a pid
	}
	for range 10 {
		f, err := take(path)
		if errors.Is(err, errAgain) {
			continue
		}
		if err != nil {
			return nil, err
		}
		own.paths[path] = true
		return &Lock{path: path, f: f}, nil
	}
	return nil, fmt.Errorf("lock %s: its owners come and go", path)
}

func take(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // a path of the configuration
	if err != nil {
		return nil, err
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &whole); err == nil {
		return f, nil
	} else if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	owner := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &owner); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	if owner.Type == unix.F_UNLCK { // its owner ended between the two calls
		return nil, errors.Join(errAgain, f.Close())
	}
	return nil, errors.Join(&Held{Path: path, Pid: owner.Pid}, f.Close())
}
