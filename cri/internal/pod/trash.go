package pod

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func (m *Manager) trashDir() string { return filepath.Join(m.cfg.Root, "trash") }

// trash removes a directory: renamed away at once, deleted in the background.
func (m *Manager) trash(dir string) error {
	to := filepath.Join(m.trashDir(), newID())
	err := os.Rename(dir, to)
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Lstat(dir); errors.Is(serr, os.ErrNotExist) {
			return nil
		}
		if err := os.MkdirAll(m.trashDir(), 0o700); err != nil {
			return err
		}
		err = os.Rename(dir, to)
	}
	if err != nil {
		return err
	}
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		m.burn(to)
	}()
	return nil
}

// burn deletes what was thrown away, until the daemon ends: emptyTrash of the next one goes on. A disk that is full or
// ill for a moment is asked again.
func (m *Manager) burn(dir string) {
	for wait := 100 * time.Millisecond; ; wait *= 4 {
		err := demolish(m.life, dir)
		if err == nil {
			return
		}
		const patience = 30 * time.Second
		select {
		case <-time.After(wait):
		case <-m.life.Done():
			return
		}
		if wait > patience {
			m.cfg.Log.Warn("trash stays until the next start", "path", dir, "error", err)
			return
		}
	}
}

// emptyTrash deletes what an earlier daemon had thrown away but not deleted.
func (m *Manager) emptyTrash() {
	m.work.Add(1)
	go func() {
		defer m.work.Done()
		old, err := os.ReadDir(m.trashDir())
		for _, e := range old {
			err = errors.Join(err, demolish(m.life, filepath.Join(m.trashDir(), e.Name())))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && m.life.Err() == nil {
			m.cfg.Log.Warn("trash not emptied", "error", err)
		}
	}()
}

// demolish removes a directory that nobody uses any more, or stops with ctx's error between two files. A container made
// what is in it: any number of files, and directories as deep as it liked. So it is not walked but flattened, which takes
// two descriptors and no memory: what is not empty below one of its directories is moved up beside it.
func demolish(ctx context.Context, dir string) error {
	for {
		switch err := unix.Rmdir(dir); {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOTDIR): // nothing of ours
			return os.Remove(dir)
		case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST):
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		top, err := os.Open(dir) //nolint:gosec // our own path
		if err != nil {
			return err
		}
		gone, err := clearDir(ctx, top, func(name string) (bool, error) { return raze(ctx, top, name) })
		_ = top.Close() // read only
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if !gone { // what no round removes, no further one does
			return errors.Join(err, &os.PathError{Op: "rmdir", Path: dir, Err: unix.ENOTEMPTY})
		}
	}
}

// raze empties one directory below top, and then removes it.
func raze(ctx context.Context, top *os.File, name string) (gone bool, err error) {
	fd, err := unix.Openat(int(top.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "openat", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close() //nolint:errcheck // read only
	gone, err = clearDir(ctx, d, func(below string) (bool, error) {
		if err := unix.Renameat(fd, below, int(top.Fd()), newID()); err != nil {
			return false, &os.PathError{Op: "renameat", Path: filepath.Join(name, below), Err: err}
		}
		return true, nil
	})
	if err == nil && ctx.Err() == nil {
		err = unix.Unlinkat(int(top.Fd()), name, unix.AT_REMOVEDIR)
	}
	return gone || err == nil, err
}

// clearDir removes what can be removed of a directory's entries by one call each; full sees to a directory that is not
// empty. It says whether anything is gone, and the first error; ctx ends it early.
func clearDir(ctx context.Context, d *os.File, full func(name string) (bool, error)) (gone bool, first error) {
	const batch = 1024
	for {
		names, err := d.Readdirnames(batch)
		for _, name := range names {
			if ctx.Err() != nil {
				return gone, ctx.Err()
			}
			err := unix.Unlinkat(int(d.Fd()), name, 0)
			if errors.Is(err, unix.EISDIR) {
				err = unix.Unlinkat(int(d.Fd()), name, unix.AT_REMOVEDIR)
			}
			one := err == nil
			switch {
			case errors.Is(err, unix.ENOENT):
				err = nil
			case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
				one, err = full(name)
			}
			gone = gone || one
			if err != nil && first == nil {
				first = &os.PathError{Op: "remove", Path: filepath.Join(d.Name(), name), Err: err}
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 {
			return gone, first
		}
		if err != nil {
			return gone, errors.Join(first, err)
		}
	}
}
