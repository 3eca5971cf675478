package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

const (
	immutable  = 0x10 // FS_IMMUTABLE_FL, linux/fs.h
	appendOnly = 0x20 // FS_APPEND_FL
	batch      = 1024 // names that are read at once: a directory may have millions
)

// Writable takes the flags off a file or directory that would keep it from being renamed or removed (chattr +i, +a).
// A file system that has no flags is fine.
func Writable(f *os.File) error {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&(immutable|appendOnly) == 0 {
		return nil //nolint:nilerr // no flags
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^(immutable|appendOnly)); err != nil {
		return fmt.Errorf("%s: FS_IOC_SETFLAGS: %w", f.Name(), err)
	}
	return nil
}

// Empty removes all that is in an open directory, which it closes, until nothing is left or ctx ends, and says how
// many entries could not be removed. However deep what is in it was nested, no more than two directories are open at a
// time: a directory below another is first moved up. Nothing that is mounted is removed.
func Empty(ctx context.Context, trash *os.File) (left int, err error) {
	e := &eraser{trash: trash, stuck: map[string]bool{}}
	var st unix.Stat_t
	if err := unix.Fstat(int(trash.Fd()), &st); err != nil {
		return 0, errors.Join(err, trash.Close())
	}
	e.dev = st.Dev
	for again := true; again && ctx.Err() == nil; {
		again, err = e.round(ctx)
	}
	return len(e.stuck), errors.Join(err, trash.Close())
}

type eraser struct {
	trash *os.File
	dev   uint64
	moved int
	stuck map[string]bool
}

// round removes what is in the trash now and says whether there may be more.
func (e *eraser) round(ctx context.Context) (more bool, failed error) {
	names, err := list(e.trash)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if e.stuck[name] || ctx.Err() != nil {
			continue
		}
		more = true
		if err := e.remove(ctx, name); err != nil {
			e.stuck[name] = true
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
		}
	}
	return more, failed
}

func (e *eraser) remove(ctx context.Context, name string) error {
	d, err := open(e.trash, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return unlink(e.trash, name)
	}
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	if st.Dev != e.dev {
		return errs.FailedPrecondition.Errorf("something is mounted there: unmount it")
	}
	if err := Writable(d); err != nil {
		return err
	}
	for ctx.Err() == nil {
		names, err := first(d)
		if errors.Is(err, io.EOF) {
			return unix.Unlinkat(int(e.trash.Fd()), name, unix.AT_REMOVEDIR)
		}
		if err != nil {
			return err
		}
		for _, below := range names {
			if err := e.below(d, below); err != nil {
				return fmt.Errorf("%s: %w", below, err)
			}
		}
	}
	return ctx.Err()
}

// first reads the first names of a directory, or io.EOF.
func first(d *os.File) ([]string, error) {
	fd, err := unix.Openat(int(d.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), d.Name())
	names, err := f.Readdirnames(batch)
	return names, errors.Join(err, f.Close())
}

// below unlinks a file, and moves a directory up into the trash.
func (e *eraser) below(d *os.File, name string) error {
	err := unlink(d, name)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	sub, err := open(d, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	e.moved++
	up := fmt.Sprintf("below.%d.%d", time.Now().UnixNano(), e.moved)
	err = errors.Join(Writable(sub), sub.Close())
	if err == nil {
		err = unix.Renameat2(int(d.Fd()), name, int(e.trash.Fd()), up, unix.RENAME_NOREPLACE)
	}
	return err
}

// unlink removes what is no directory; one that is immutable is made writable first.
func unlink(d *os.File, name string) error {
	err := unix.Unlinkat(int(d.Fd()), name, 0)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	f, oerr := open(d, name, unix.O_RDONLY, 0)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	if werr := errors.Join(Writable(f), f.Close()); werr != nil {
		return errors.Join(err, werr)
	}
	return unix.Unlinkat(int(d.Fd()), name, 0)
}
