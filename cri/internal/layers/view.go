package layers

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// view is a stack of layer directories looked at as overlayfs would merge them, topmost first.
type view struct {
	dirs []*os.File
}

func (v *view) close() {
	for _, d := range v.dirs {
		_ = d.Close() //nolint:errcheck // read only
	}
}

// outcome of looking for a path in one layer.
type outcome int

const (
	absent outcome = iota // look further down
	hidden                // nothing at this path, whatever is below
	found
)

// find opens (O_PATH) the directory that holds the visible object at p, a clean path, and stats the object. It is
// ENOENT when nothing is visible. No symbolic link is followed.
func (v *view) find(p string) (dir int, st unix.Stat_t, err error) {
	for _, d := range v.dirs {
		dir, st, how, last, err := findIn(int(d.Fd()), p)
		if err != nil || how == found {
			return dir, st, err
		}
		if how == hidden || last {
			break
		}
	}
	return -1, st, unix.ENOENT
}

// findIn looks in one layer. last says that a directory on the way is opaque: nothing further down counts.
func findIn(root int, p string) (dir int, st unix.Stat_t, how outcome, last bool, err error) {
	at, err := openBeneath(root, "", opathDir)
	if err != nil {
		return -1, st, absent, false, err
	}
	parts := strings.Split(p, "/")
	for i, part := range parts {
		err := fstatat(at, part, &st)
		switch {
		case errors.Is(err, unix.ENOENT):
			_ = unix.Close(at) //nolint:errcheck // O_PATH
			return -1, st, absent, last, nil
		case err != nil:
			_ = unix.Close(at) //nolint:errcheck // O_PATH
			return -1, st, absent, last, os.NewSyscallError("fstatat", err)
		case isWhiteout(&st), i < len(parts)-1 && st.Mode&unix.S_IFMT != unix.S_IFDIR:
			_ = unix.Close(at) //nolint:errcheck // O_PATH
			return -1, st, hidden, true, nil
		case i == len(parts)-1:
			return at, st, found, last, nil
		}
		next, err := openBeneath(at, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		_ = unix.Close(at) //nolint:errcheck // O_PATH
		if err != nil {
			return -1, st, absent, last, os.NewSyscallError("openat2", err)
		}
		at = next
		last = last || isOpaque(at)
	}
	return -1, st, absent, last, unix.EINVAL
}

func isOpaque(fd int) bool {
	var b [4]byte
	n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// prefixes of "a/b/c" are "a", "a/b" and "a/b/c".
func prefixes(p string) []string {
	var out []string
	for q := p; q != "." && q != "/" && q != ""; q = path.Dir(q) {
		out = append([]string{q}, out...)
	}
	return out
}
