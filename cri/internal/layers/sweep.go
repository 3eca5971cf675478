package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/removal"
)

// stagedGrace is how long a layer of a failed pull waits for the next try.
const stagedGrace = 5 * time.Minute

// Run empties the trash, and drops staged layers that nobody came back for, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		s.dropIdle(time.Now().Add(-stagedGrace))
		if err := s.emptyTrash(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("trash not emptied", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.sweep:
		case <-tick.C:
		}
	}
}

// Sweep discards committed layers that nobody refers to, and what dead processes left in tmp. Call it when every
// reference there can be has been taken.
func (s *Store) Sweep() error {
	s.mu.Lock()
	for _, l := range s.layers {
		if l.committed && l.refs == 0 {
			s.discard(l)
		}
	}
	s.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(s.root, tmpDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !s.isSession(e.Name()) {
			err = errors.Join(err, s.trash(filepath.Join(s.root, tmpDir, e.Name()), e.Name()))
		}
	}
	return err
}

func (s *Store) dropIdle(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		if !l.committed && l.refs == 0 && l.idle.Before(before) {
			s.discard(l)
		}
	}
}

// emptyTrash deletes at idle I/O priority, on a thread of its own that ends with the work.
func (s *Store) emptyTrash(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()                                   // never unlocked: the thread ends with its priority
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, 1, 0, 3<<13) //nolint:errcheck // IOPRIO_WHO_PROCESS, this thread, IOPRIO_CLASS_IDLE: only a hint
		done <- s.deleteTrash(ctx)
	}()
	return <-done
}

func (s *Store) deleteTrash(ctx context.Context) error {
	dir, err := os.Open(filepath.Join(s.root, trashDir))
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // read only
	names, err := dir.Readdirnames(-1)
	for _, n := range names {
		err = errors.Join(err, removal.Tree(ctx, filepath.Join(dir.Name(), n)))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

// Suspect marks all layers to be looked at before their next use: the machine may have gone down under them.
func (s *Store) Suspect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.layers {
		s.suspects[id] = true
	}
}

// Verify looks at a suspect layer: it must have as many inodes and bytes as were written. One that has not goes
// to quarantine and is gone; the error says so. Layers above suspicion cost nothing.
func (s *Store) Verify(id string) error {
	s.mu.Lock()
	l, suspect := s.layers[id], s.suspects[id]
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("layer %s: %w", id, fs.ErrNotExist)
	}
	if !suspect {
		return nil
	}
	inodes, bytes, err := census(filepath.Join(l.dir, contentName))
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.suspects[id] {
		return nil
	}
	if err == nil && inodes == l.info.Inodes && bytes == l.info.Bytes {
		delete(s.suspects, id)
		return nil
	}
	s.forget(l)
	damage := fmt.Errorf("layer %s is damaged: %d of %d inodes, %d of %d bytes", id, inodes, l.info.Inodes, bytes, l.info.Bytes)
	return errors.Join(damage, err, s.quarantine(id))
}

// census counts inodes below dir, and bytes of regular files, each file once.
func census(dir string) (inodes, bytes int64, err error) {
	linked := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		inodes++
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			bytes += st.Size
		}
		return nil
	})
	return inodes, bytes, err
}
