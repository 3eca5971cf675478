package layers

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	opathDir   = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	beneath    = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	maxFollows = 255
)

// openBeneath opens a path that must meet no symbolic link and no other file system on its way down from root.
// The empty path is root itself.
func openBeneath(root int, name string, flags int) (int, error) {
	if name == "" {
		name = "."
	}
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: beneath} //nolint:gosec // small
	for {
		fd, err := unix.Openat2(root, name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// open returns the directory at a clean lexical path, making what is missing; symbolic links of this layer are
// followed inside the root. The result stays the applier's and is kept for the next entry, which most often is
// in the same directory.
func (a *applier) open(dir string) (parent, error) {
	if a.parent.fd >= 0 && a.parentKey == dir {
		return a.parent, nil
	}
	a.dropParent()
	fd, err := openBeneath(a.root, dir, opathDir)
	p := parent{fd: fd, path: dir}
	if err != nil {
		if p, _, err = a.walk(dir, true); err != nil {
			return parent{fd: -1}, err
		}
	}
	a.parent, a.parentKey = p, dir
	return p, nil
}

// lookup is open without making anything; the caller closes the result.
func (a *applier) lookup(dir string) (p parent, found bool, err error) {
	if fd, err := openBeneath(a.root, dir, opathDir); err == nil {
		return parent{fd: fd, path: dir}, true, nil
	}
	return a.walk(dir, false)
}

func (a *applier) dropParent() {
	if a.parent.fd >= 0 {
		_ = unix.Close(a.parent.fd) //nolint:errcheck // O_PATH
	}
	a.parent = parent{fd: -1}
}

// walk goes down one component at a time, each a single name opened in the directory before it. ".." is taken
// from the path walked so far, which holds no links, and never leaves the root.
func (a *applier) walk(dir string, create bool) (at parent, found bool, err error) {
	if at.fd, err = openBeneath(a.root, "", opathDir); err != nil {
		return parent{fd: -1}, false, err
	}
	defer func() {
		if err != nil || !found {
			_ = unix.Close(at.fd) //nolint:errcheck // O_PATH
			at.fd = -1
		}
	}()
	move := func(fd int, name string) {
		_ = unix.Close(at.fd) //nolint:errcheck // O_PATH
		at = parent{fd: fd, path: name}
	}
	todo := strings.Split(dir, "/")
	for follows := 0; len(todo) > 0; {
		part := todo[0]
		if part == "" || part == "." {
			todo = todo[1:]
			continue
		}
		name, from, rel := path.Join(at.path, part), at.fd, part
		if part == ".." {
			name = strings.TrimPrefix(path.Dir("/"+at.path), "/")
			from, rel = a.root, name
		}
		fd, cause := openBeneath(from, rel, opathDir)
		if cause == nil {
			move(fd, name)
			todo = todo[1:]
			continue
		}
		link, again, err := a.missing(at, part, create, cause)
		if err != nil || !again {
			return at, false, err
		}
		if link == "" {
			continue // it was made: open it
		}
		if follows++; follows > maxFollows {
			return at, false, unix.ELOOP
		}
		if strings.HasPrefix(link, "/") {
			root, err := openBeneath(a.root, "", opathDir)
			if err != nil {
				return at, false, err
			}
			move(root, "")
		}
		todo = append(strings.Split(link, "/"), todo[1:]...)
	}
	return at, true, nil
}

// missing handles a component that is no directory: a symbolic link is returned to be followed, nothing (and a
// whiteout of this layer) becomes a directory if create is set. again says that the walk goes on.
func (a *applier) missing(at parent, part string, create bool, cause error) (link string, again bool, err error) {
	var st unix.Stat_t
	err = fstatat(at.fd, part, &st)
	gone := errors.Is(err, unix.ENOENT)
	if err != nil && !gone {
		return "", false, err
	}
	if !gone && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		buf := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(at.fd, part, buf)
		return string(buf[:max(n, 0)]), err == nil, os.NewSyscallError("readlinkat", err)
	}
	whiteout := !gone && isWhiteout(&st)
	switch {
	case !gone && !whiteout:
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return "", false, cause // a directory that cannot be opened
		}
		if !create {
			return "", false, nil
		}
		return "", false, fmt.Errorf("parent %q: %w", path.Join(at.path, part), unix.ENOTDIR)
	case !create:
		return "", false, nil
	}
	if whiteout {
		if err := unix.Unlinkat(at.fd, part, 0); err != nil {
			return "", false, os.NewSyscallError("unlinkat", err)
		}
		a.result.Inodes--
	}
	return "", true, a.makeParent(at, part, whiteout)
}

// makeParent makes a directory that no entry describes. Under a whiteout of the same layer it hides what is
// below and does not stand for it.
func (a *applier) makeParent(at parent, part string, hides bool) error {
	name := path.Join(at.path, part)
	if err := unix.Mkdirat(at.fd, part, 0o755); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	a.result.Inodes++
	delete(a.deferred, name)
	fd, err := unix.Openat(at.fd, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)                          //nolint:errcheck // nothing written
	if err := unix.Fchown(fd, 0, 0); err != nil { // the parent may be setgid
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if hides {
		if err := a.hides(name); err != nil {
			return err
		}
	}
	a.dirs[name] = &dirState{implicit: !hides}
	return a.remember(name)
}

// remove takes away what an earlier entry of this layer put at base, so that a later one can have the name.
func (a *applier) remove(p parent, base string) error {
	n, bytes, err := removeAt(p.fd, base)
	a.result.Inodes -= n
	a.result.Bytes -= bytes
	if name := path.Join(p.path, base); a.opaques.removed(name) && err == nil {
		return a.remember(name)
	}
	return err
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func fstatat(dir int, name string, st *unix.Stat_t) error {
	return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW)
}

// futimens sets the times of an open file; x/sys has it by path only.
func futimens(fd int, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0) //nolint:gosec // utimensat(2) with a NULL path
	if e != 0 {
		return os.NewSyscallError("futimens", syscall.Errno(e))
	}
	return nil
}

func futimens2(fd int, hdr *tar.Header) error {
	at, mt := times(hdr)
	return futimens(fd, at, mt)
}
