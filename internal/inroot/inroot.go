// Package inroot opens paths inside a directory that somebody else may be changing: a container's rootfs, a
// volume, an image layer. Every look-up is one openat2(2) with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS
// (Linux 5.6), so that "..", absolute links and links swapped during the walk end inside the root, as chroot
// would resolve them, and /proc magic links are refused.
//
// A path is never used twice: callers work on the descriptor they got. The package needs no more than
// golang.org/x/sys.
package inroot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is an open directory below which paths are resolved. Close it when done.
type Root struct {
	dir *os.File
}

// Open opens dir as a root. dir itself is trusted and resolved as usual.
func Open(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open root", Path: dir, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir)}, nil
}

// FromFile makes a root of an open directory, which the Root then owns.
func FromFile(dir *os.File) *Root { return &Root{dir: dir} }

// Close closes the root's descriptor.
func (r *Root) Close() error { return r.dir.Close() }

// Fd is the root's own descriptor; it stays the Root's.
func (r *Root) Fd() int { return int(r.dir.Fd()) }

// Name is the path the root was opened by, for messages only.
func (r *Root) Name() string { return r.dir.Name() }

// Open opens name inside the root with the flags of open(2). O_CLOEXEC is always set; with O_NOFOLLOW a link as
// the last component is an error (ELOOP) unless O_PATH is set too. mode is used with O_CREAT only.
func (r *Root) Open(name string, flags int, mode uint32) (*os.File, error) {
	return openIn(r.Fd(), name, flags, mode, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// Beneath is Open for names that have no business meeting a symbolic link at all: any link on the way is ELOOP,
// and leaving the root is EXDEV.
func (r *Root) Beneath(name string, flags int, mode uint32) (*os.File, error) {
	return openIn(r.Fd(), strings.TrimLeft(name, "/"), flags, mode, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

func openIn(dir int, name string, flags int, mode uint32, resolve uint64) (*os.File, error) {
	if strings.ContainsRune(name, 0) {
		return nil, &os.PathError{Op: "openat2", Path: strings.ReplaceAll(name, "\x00", "?"), Err: unix.EINVAL}
	}
	if name == "" {
		name = "."
	}
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve} //nolint:gosec // flags are small
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode)
	}
	for range 128 {
		fd, err := unix.Openat2(dir, name, how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // a rename raced with the look-up of ".."
			continue
		case err != nil:
			return nil, &os.PathError{Op: "openat2", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return nil, &os.PathError{Op: "openat2", Path: name, Err: unix.EAGAIN}
}

// Parent opens the directory that holds name, following links inside the root, and returns it (O_PATH) with the
// last component, on which the caller then uses the *at system calls without following it. The root itself has
// no parent: name "/" is EINVAL.
func (r *Root) Parent(name string) (*os.File, string, error) {
	dir, base := path.Split(path.Clean("/" + name))
	if base == "" {
		return nil, "", &os.PathError{Op: "parent", Path: name, Err: unix.EINVAL}
	}
	f, err := r.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return f, base, err
}

// MkdirAll makes name and its missing parents with mode perm (not changed by the umask) and opens the last one
// O_PATH. Existing directories, reached by links inside the root or not, are left as they are.
func (r *Root) MkdirAll(name string, perm uint32) (*os.File, error) {
	clean := path.Clean("/" + name)
	if f, err := r.Open(clean, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil || !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	prefix := ""
	for part := range strings.SplitSeq(strings.Trim(clean, "/"), "/") {
		next := prefix + "/" + part
		if err := r.mkdir(next, perm); err != nil {
			return nil, err
		}
		prefix = next
	}
	return r.Open(clean, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// mkdir makes one directory unless something is there. A dangling link is an error: making its target would let
// the link's author choose where.
func (r *Root) mkdir(name string, perm uint32) error {
	parent, base, err := r.Parent(name)
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // O_PATH
	err = unix.Mkdirat(int(parent.Fd()), base, perm)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return &os.PathError{Op: "mkdirat", Path: name, Err: err}
	}
	fd, err := openIn(int(parent.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH)
	if err != nil {
		return err
	}
	defer fd.Close() //nolint:errcheck // nothing written through it
	return unix.Fchmod(int(fd.Fd()), perm)
}

// ReadFile reads a regular file of at most limit bytes inside the root. A file that is something else, or
// longer, is an error: its content is not the reader's to trust.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file (%v)", name, fi.Mode().Type())
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes, more than the %d that are read", name, fi.Size(), limit)
	}
	b := make([]byte, fi.Size())
	n, err := unix.Pread(int(f.Fd()), b, 0)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: name, Err: err}
	}
	return b[:n], nil
}
