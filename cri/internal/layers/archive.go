package layers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Archive writes a layer as an OCI layer tar and returns its length. Entries are sorted by path and carry what an
// image may carry, so the same layer always gives the same bytes; they need not be those it came from. What the
// layer left open stays open: directories it did not describe get no entry, and hard links to lower files become
// hard links again.
func (s *Store) Archive(ctx context.Context, id string, w io.Writer) (int64, error) {
	info, ok := s.Info(id)
	if !ok {
		return 0, errs.NotFound.Errorf("layer %s: %w", id, errs.NotFound)
	}
	root, err := unix.Open(s.Dir(id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("open", err)
	}
	defer unix.Close(root) //nolint:errcheck // read only
	n := &counter{w: w}
	a := &archiver{ctx: ctx, tw: tar.NewWriter(n), implicit: map[string]bool{}, first: map[uint64]string{}, buf: make([]byte, 256<<10)}
	for _, p := range info.Implicit {
		a.implicit[p] = true
	}
	if info.Opaque {
		if err := a.marker(".wh..wh..opq"); err != nil {
			return n.n, err
		}
	}
	if err := a.dir(root, ""); err != nil {
		return n.n, fmt.Errorf("archive layer %s: %w", id, err)
	}
	for _, l := range info.Links {
		if err := a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: l.Name, Linkname: l.Target, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)}); err != nil {
			return n.n, err
		}
	}
	err = a.tw.Close()
	return n.n, err
}

type counter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

type archiver struct {
	ctx      context.Context //nolint:containedctx // one archive's
	tw       *tar.Writer
	implicit map[string]bool
	first    map[uint64]string // inode -> path, of files with several links
	buf      []byte
}

func (a *archiver) marker(name string) error {
	return a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)})
}

// dir archives what is in an open directory.
func (a *archiver) dir(fd int, p string) error {
	f, err := reopen(fd)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close(), a.ctx.Err()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := a.entry(fd, n, path.Join(p, n)); err != nil {
			return err
		}
	}
	return nil
}

func reopen(fd int) (*os.File, error) {
	d, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(d), "."), nil
}

func (a *archiver) entry(dir int, name, p string) error {
	var st unix.Stat_t
	if err := fstatat(dir, name, &st); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	if isWhiteout(&st) {
		return a.marker(path.Join(path.Dir(p), ".wh."+name))
	}
	hdr := &tar.Header{
		Name: p, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Format: tar.FormatPAX,
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return a.subdir(dir, name, hdr)
	case unix.S_IFLNK:
		buf := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return os.NewSyscallError("readlinkat", err)
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, string(buf[:n])
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	default:
		return nil // a socket; no archive can bring one
	}
	if st.Nlink > 1 {
		if to := a.first[st.Ino]; to != "" {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, to, 0
			return a.tw.WriteHeader(hdr)
		}
		a.first[st.Ino] = p
	}
	if hdr.Typeflag == tar.TypeReg {
		return a.file(dir, name, hdr)
	}
	return a.tw.WriteHeader(hdr)
}

func (a *archiver) subdir(dir int, name string, hdr *tar.Header) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	p := hdr.Name
	if !a.implicit[p] {
		hdr.Typeflag, hdr.Name = tar.TypeDir, p+"/"
		if err := a.header(fd, hdr); err != nil {
			return err
		}
	}
	if isOpaque(fd) {
		if err := a.marker(path.Join(p, ".wh..wh..opq")); err != nil {
			return err
		}
	}
	return a.dir(fd, p)
}

// header writes an entry with its extended attributes.
func (a *archiver) header(fd int, hdr *tar.Header) error {
	names, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		v, err := getXattr(fd, n)
		if err != nil {
			return err
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords["SCHILY.xattr."+n] = string(v)
	}
	return a.tw.WriteHeader(hdr)
}

func (a *archiver) file(dir int, name string, hdr *tar.Header) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), strings.Clone(name))
	defer f.Close() //nolint:errcheck // read only
	if err := a.header(fd, hdr); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{a.tw}, struct{ io.Reader }{f}, a.buf)
	if err == nil && n != hdr.Size {
		err = fmt.Errorf("%s: %d bytes instead of %d", hdr.Name, n, hdr.Size)
	}
	return err
}
