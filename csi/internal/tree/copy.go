// Package tree copies a directory with everything below it, by file descriptors: owners, modes, times, extended
// attributes, hard links, holes, links and special files are as they were. What is below belongs to somebody else, so
// no name in it is ever followed, and a mount below is refused.
//
// The package knows nothing of volumes.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Copy copies what is in one open directory into another, which must be empty but for a lost+found, and gives that the
// attributes of the first. Blocks are shared where both are on one file system that can (FICLONE). It is not durable
// until the file system is synced.
func Copy(ctx context.Context, from, to *os.File) error {
	c := &copier{to: to, links: map[uint64]string{}}
	if err := unix.Fstat(int(from.Fd()), &c.root); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return c.dir(ctx, from, to, "")
}

type copier struct {
	to    *os.File
	root  unix.Stat_t
	links map[uint64]string // inode of a file with several names: its first name in the copy
}

func (c *copier) dir(ctx context.Context, from, to *os.File, at string) error {
	names, err := list(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if at == "" && name == "lost+found" { // of the file system that it was the root of
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(ctx, from, to, path.Join(at, name)); err != nil {
			return fmt.Errorf("%s: %w", path.Join(at, name), err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	return attributes(from, to, st)
}

// list reads a directory, opened anew, so that it can be read again.
func list(dir *os.File) ([]string, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir.Name())
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, errors.Join(err, f.Close())
}

func (c *copier) entry(ctx context.Context, from, to *os.File, at string) error {
	name := path.Base(at)
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Dev != c.root.Dev {
		return errs.FailedPrecondition.Errorf("something is mounted there: unmount it")
	}
	if first, again := c.links[st.Ino]; again {
		return unix.Linkat(int(c.to.Fd()), first, int(to.Fd()), name, 0)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.below(ctx, from, to, at)
	case unix.S_IFREG:
		if st.Nlink > 1 {
			c.links[st.Ino] = at
		}
		return file(ctx, from, to, name, st)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(from.Fd()), name, target)
		if err == nil {
			err = unix.Symlinkat(string(target[:n]), int(to.Fd()), name)
		}
		return errors.Join(err, owner(to, name, st))
	}
	if err := unix.Mknodat(int(to.Fd()), name, st.Mode, int(st.Rdev)); err != nil { //nolint:gosec // device numbers fit
		return err
	}
	return errors.Join(owner(to, name, st), unix.Fchmodat(int(to.Fd()), name, st.Mode&0o7777, 0))
}

func (c *copier) below(ctx context.Context, from, to *os.File, at string) error {
	name := path.Base(at)
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
		return err
	}
	f, err := open(from, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	t, err := open(to, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(c.dir(ctx, f, t, at), f.Close(), t.Close())
}

func open(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func file(ctx context.Context, from, to *os.File, name string, st unix.Stat_t) error {
	f, err := open(from, name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	t, err := open(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err = unix.IoctlFileClone(int(t.Fd()), int(f.Fd())); err != nil {
		err = data(ctx, f, t, st.Size)
	}
	return errors.Join(err, attributes(f, t, st), f.Close(), t.Close())
}

// data copies what is not a hole.
func data(ctx context.Context, f, t *os.File, size int64) error {
	const slice = 16 << 20
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = start; at < end; {
			n, err := io.Copy(io.NewOffsetWriter(t, at), io.NewSectionReader(f, at, min(slice, end-at)))
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			if n == 0 { // it was made shorter meanwhile
				return errs.Aborted.Errorf("it is being written: end what uses it")
			}
			at += n
		}
	}
	return t.Truncate(size)
}

// attributes gives a file or directory owner, mode, extended attributes and times, in the order in which one does not
// undo another: chown(2) clears set-uid and capabilities.
func attributes(from, to *os.File, st unix.Stat_t) error {
	if err := errors.Join(unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)), unix.Fchmod(int(to.Fd()), st.Mode&0o7777), extended(from, to)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(to.Fd()), "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

func owner(dir *os.File, name string, st unix.Stat_t) error {
	return errors.Join(unix.Fchownat(int(dir.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW),
		unix.UtimesNanoAt(int(dir.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

// extended copies extended attributes, ACLs and file capabilities among them; a file system's own properties stay
// behind.
func extended(from, to *os.File) error {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(int(from.Fd()), names)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "btrfs.") || name == "security.selinux" {
			continue
		}
		size, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:size], 0)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
