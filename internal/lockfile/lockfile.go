// Package lockfile keeps a second process away from a directory. It uses fcntl record locks (fcntl_locking(2)), not
// flock: a flock is shared with every child between fork and exec, so that for a moment it outlives a killed owner and
// a restart is refused. A record lock belongs to the process alone and ends with it.
//
// The rule of record locks: closing any descriptor of the file in the owning process gives the lock up. So nothing
// but this package opens the file.
package lockfile

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Held is the error of a lock that another process has.
type Held struct {
	Path string
	Pid  int32 // of the owner; 0 where it is in another pid namespace
}

// Error names the owner and the file.
func (h *Held) Error() string { return fmt.Sprintf("process %d has %s locked", h.Pid, h.Path) }

// Take locks the file at path for this process, making it if needed, and holds it until the file is closed. Where
// another process holds it, the error is a *Held. It never waits.
func Take(path string) (*os.File, error) {
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
	return nil, errors.Join(&Held{Path: path, Pid: owner.Pid}, f.Close())
}
