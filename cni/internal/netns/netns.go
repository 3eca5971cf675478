// Package netns opens network namespaces and runs code in them. Threads are the unit: a thread that could not be
// brought back is never given back to the scheduler.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NS is an open network namespace.
type NS struct {
	f *os.File
	// Dev and Ino identify the namespace as long as it lives.
	Dev, Ino uint64
}

// ErrNotNetNS is a path that is something else.
var ErrNotNetNS = errors.New("not a network namespace")

// Open opens a namespace file such as /run/netns/x or /proc/1/ns/net. Nothing else is opened by it: the file is
// examined before anything could happen by opening it for reading.
func Open(path string) (*NS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	n, err := identify(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// Current opens the calling thread's namespace.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

func identify(f *os.File) (*NS, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, ErrNotNetNS
	}
	typ, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || typ != unix.CLONE_NEWNET {
		return nil, ErrNotNetNS
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	return &NS{f: f, Dev: st.Dev, Ino: st.Ino}, nil
}

// FD is the open descriptor; it stays the NS's.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Is says whether both are the same namespace.
func (n *NS) Is(o *NS) bool { return n.Dev == o.Dev && n.Ino == o.Ino }

// Close closes the descriptor.
func (n *NS) Close() error { return n.f.Close() }

// Do runs fn in the namespace, on a thread that is locked meanwhile, and returns to where it was.
func (n *NS) Do(fn func() error) error {
	runtime.LockOSThread()
	here, err := Current()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer here.Close() //nolint:errcheck // read only
	if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = fn()
	if back := unix.Setns(here.FD(), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked and dies with its goroutine.
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
