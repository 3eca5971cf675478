package layers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// applier unpacks one archive. Nobody else may change the directory meanwhile, but every step holds even so:
// paths are resolved by openat2 beneath the root, and objects are touched by descriptor or by a single name in a
// directory descriptor.
type applier struct {
	root   int
	limits Limits
	result Result

	dirs      map[string]*dirState // by path in the layer, without symlinks
	deferred  map[string]string    // Links by name
	whiteouts []string
	opaques   opaques
	names     int64
	written   int64 // unlike result.Bytes never goes down
	entries   int64
	buf       []byte
	parentKey string // the lexical parent that parent belongs to
	parent    parent
}

type dirState struct {
	implicit bool
	mtime    unix.Timespec
	atime    unix.Timespec
}

// parent is an open directory (O_PATH) and its path in the layer.
type parent struct {
	fd   int
	path string
}

// Apply unpacks an uncompressed tar stream into dir, which must be empty and the caller's own. Whiteouts become
// overlayfs's character devices 0:0, opaque directories are listed in the result. It reads to the end of the
// archive, not of the stream. Errors caused by the archive name the entry and are errs.FailedPrecondition; a
// full disk is errs.ResourceExhausted. What was made before an error stays, for the caller to remove.
//
// It needs CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD and CAP_SETFCAP.
func Apply(ctx context.Context, dir *os.File, r io.Reader, limits Limits) (*Result, error) {
	a := &applier{
		root: int(dir.Fd()), limits: limits.withDefaults(),
		dirs: map[string]*dirState{}, deferred: map[string]string{}, opaques: newOpaques(),
		buf: make([]byte, 256<<10), parent: parent{fd: -1},
	}
	defer a.dropParent()
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, streamError(err)
		}
		if a.entries++; a.entries > a.limits.Entries {
			return nil, badEntry(hdr.Name, "%w: more than %d entries", ErrLimit, a.limits.Entries)
		}
		if err := a.entry(hdr, tr); err != nil {
			return nil, entryError(hdr.Name, err)
		}
	}
	if err := a.finish(); err != nil {
		return nil, err
	}
	return &a.result, nil
}

// streamError tells a malformed archive from a stream that broke.
func streamError(err error) error {
	if errors.Is(err, ErrArchive) {
		return err
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.FailedPrecondition.Errorf("%w: %w", ErrArchive, err)
	}
	return err
}

func entryError(name string, err error) error {
	switch {
	case errors.Is(err, ErrArchive):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errs.ResourceExhausted.Errorf("unpack %.300q: %w", name, err)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		return badEntry(name, "%w", err)
	}
	return fmt.Errorf("unpack %.300q: %w", name, err)
}

// entry unpacks one archive member.
func (a *applier) entry(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil || name == "" { // the root belongs to whoever mounts the image
		return err
	}
	dir, base := path.Split(name)
	p, err := a.open(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(base, ".wh."); ok {
		return a.whiteout(p, hdr.Name, rest)
	}
	delete(a.deferred, path.Join(p.path, base))
	switch hdr.Typeflag {
	case tar.TypeDir:
		return a.dir(p, base, hdr)
	case tar.TypeReg, '\x00': // the second is what very old tars write
		return a.file(p, base, hdr, body)
	case tar.TypeSymlink:
		return a.symlink(p, base, hdr)
	case tar.TypeLink:
		return a.link(p, base, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return a.node(p, base, hdr)
	}
	return badEntry(hdr.Name, "type %q is not supported", hdr.Typeflag)
}

// cleanName makes a name relative and lexically clean, as containerd does: ".." at the top stays at the top. ""
// is the root.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", badEntry(name, "NUL in the name")
	}
	if len(name) > maxPath {
		return "", badEntry(name, "the name is %d bytes long", len(name))
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if strings.Count(clean, "/") >= maxDepth {
		return "", badEntry(name, "deeper than %d directories", maxDepth)
	}
	return clean, nil
}

// finish sets directory times, which every later entry changed, and collects what is left open.
func (a *applier) finish() error {
	a.dropParent()
	if err := a.dropIdle(); err != nil {
		return err
	}
	for p, d := range a.dirs {
		fd, err := openBeneath(a.root, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue // replaced by a later entry
			}
			return fmt.Errorf("times of %q: %w", p, err)
		}
		err = futimens(fd, d.atime, d.mtime)
		_ = unix.Close(fd) //nolint:errcheck // nothing written
		if err != nil {
			return fmt.Errorf("times of %q: %w", p, err)
		}
		if d.implicit {
			a.result.Implicit = append(a.result.Implicit, p)
		}
	}
	for n, t := range a.deferred {
		a.result.Links = append(a.result.Links, Link{Name: n, Target: t})
	}
	a.result.Opaques = a.opaques.live()
	a.result.sort()
	if n := a.result.open(); n > maxOpen {
		return errs.FailedPrecondition.Errorf("%w: %w: %d bytes of names that lower layers decide, at most %d", ErrArchive, ErrLimit, n, maxOpen)
	}
	return nil
}

// dropIdle removes whiteouts below opaque directories. They hide nothing there, and overlayfs lists those of a
// directory that it does not merge, as names that cannot be looked up.
func (a *applier) dropIdle() error {
	opaque := map[string]bool{}
	for _, w := range a.whiteouts {
		dir := parentDir(w)
		known, ok := opaque[dir]
		if !ok {
			known = a.opaques.covers(dir)
			opaque[dir] = known
		}
		if !known {
			continue
		}
		fd, err := openBeneath(a.root, dir, opathDir)
		if err != nil {
			continue // the directory was replaced, and the whiteout with it
		}
		var st unix.Stat_t
		if fstatat(fd, path.Base(w), &st) == nil && isWhiteout(&st) {
			err = unix.Unlinkat(fd, path.Base(w), 0)
			a.result.Inodes--
		}
		_ = unix.Close(fd) //nolint:errcheck // O_PATH
		if err != nil {
			return os.NewSyscallError("unlinkat", err)
		}
	}
	return nil
}

// remember charges a path that stays in memory until the end.
func (a *applier) remember(p string) error {
	if a.names += int64(len(p)) + 64; a.names > a.limits.Names {
		return badEntry(p, "%w: more than %d bytes of directory names", ErrLimit, a.limits.Names)
	}
	return nil
}

// timespec clamps a time to what file systems hold: 1970 to 2446 (ext4). A zero time is the epoch.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() || t.Unix() < 0 {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: min(t.Unix(), 15032385535), Nsec: int64(t.Nanosecond())}
}

func times(hdr *tar.Header) (atime, mtime unix.Timespec) {
	mtime = timespec(hdr.ModTime)
	if atime = timespec(hdr.AccessTime); atime.Sec < mtime.Sec {
		atime = mtime
	}
	return atime, mtime
}
