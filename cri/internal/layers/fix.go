package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// A fix is a small directory that is stacked directly above a layer to fit it to what lies below:
//
//   - a directory that the layer's archive only mentioned as a parent was made 0755 root; the fix has it again
//     with the attributes that it has below, because overlayfs shows those of the topmost;
//   - a hard link to a lower file was not made at all; the fix has a copy of the file under both names, hard-linked.
//
// It depends on the whole chain and is named by it; it is made from directories alone, without a download.

// NeedsFix tells whether a layer leaves something open that lower layers decide.
func (i Info) NeedsFix() bool { return len(i.Implicit)+len(i.Links) > 0 }

// EnsureFix makes the fix named id for the layer top, whose lower directories are lowers (topmost first, fixes
// included), with a reference for the caller. All layers must be referenced by the caller.
func (s *Store) EnsureFix(ctx context.Context, id, top string, lowers []string) error {
	return s.Ensure(ctx, id, func(ctx context.Context, dir *os.File) (*Result, error) {
		stack, err := s.openAll(append([]string{top}, lowers...))
		if err != nil {
			return nil, err
		}
		defer stack.close()
		info, ok := s.Info(top)
		if !ok {
			return nil, errs.Aborted.Errorf("layer %s vanished", top)
		}
		f := &fixer{to: int(dir.Fd()), own: &view{dirs: stack.dirs[:1]}, below: &view{dirs: stack.dirs[1:]}, implicit: map[string]bool{}}
		for _, p := range info.Implicit {
			f.implicit[p] = true
		}
		for _, p := range info.Implicit {
			if err := errors.Join(ctx.Err(), f.dir(p)); err != nil {
				return nil, fmt.Errorf("fix of layer %s: %q: %w", top, p, err)
			}
		}
		for _, l := range info.Links {
			if err := errors.Join(ctx.Err(), f.link(l)); err != nil {
				return nil, err
			}
		}
		return &f.result, f.finish()
	})
}

func (s *Store) openAll(ids []string) (*view, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &view{}
	for _, id := range ids {
		l := s.layers[id]
		if l == nil {
			v.close()
			return nil, errs.Aborted.Errorf("layer %s vanished", id)
		}
		d, err := os.Open(l.dir + "/" + contentName)
		if err != nil {
			v.close()
			return nil, err
		}
		v.dirs = append(v.dirs, d)
	}
	return v, nil
}

type fixer struct {
	to         int
	own, below *view
	implicit   map[string]bool
	made       []madeDir
	result     Result
}

type madeDir struct {
	path string
	st   unix.Stat_t
}

// dir gives the directory at p, and every one above it, a twin in the fix, if a lower layer has p at all and this
// layer does not hide it.
func (f *fixer) dir(p string) error {
	dir, st, err := f.below.find(p)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	_ = unix.Close(dir) //nolint:errcheck // O_PATH
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // the layer's directory takes its place
	}
	if parent := path.Dir(p); parent != "." {
		d, _, _, hides, err := findIn(int(f.own.dirs[0].Fd()), p)
		if err != nil {
			return err
		}
		if d >= 0 {
			_ = unix.Close(d) //nolint:errcheck // O_PATH
		}
		if hides {
			return nil
		}
	}
	return f.mkdirs(p)
}

// mkdirs makes p and its parents in the fix, each with the attributes that the merged tree gives it. The empty
// path is the fix itself.
func (f *fixer) mkdirs(p string) error {
	for _, q := range prefixes(p) {
		if fd, err := openBeneath(f.to, q, opathDir); err == nil {
			_ = unix.Close(fd) //nolint:errcheck // O_PATH
			continue
		}
		if err := f.twin(q); err != nil {
			return err
		}
	}
	return nil
}

// twin copies the directory q alone.
func (f *fixer) twin(q string) error {
	from := f.own
	if f.implicit[q] {
		from = &view{dirs: f.below.dirs}
	}
	dir, st, err := from.find(q)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err == nil {
			_ = unix.Close(dir) //nolint:errcheck // O_PATH
		}
		merged := &view{dirs: append(append([]*os.File{}, f.own.dirs...), f.below.dirs...)}
		dir, st, err = merged.find(q)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", q, err)
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	src, err := openBeneath(dir, path.Base(q), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	defer unix.Close(src) //nolint:errcheck // read only
	to, err := openBeneath(f.to, parentDir(q), opathDir)
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	defer unix.Close(to) //nolint:errcheck // O_PATH
	if err := unix.Mkdirat(to, path.Base(q), 0o700); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	dst, err := openBeneath(to, path.Base(q), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	defer unix.Close(dst) //nolint:errcheck // nothing written
	f.result.Inodes++
	f.made = append(f.made, madeDir{q, st})
	return copyAttributes(src, dst, &st)
}

func parentDir(p string) string {
	if d := path.Dir(p); d != "." {
		return d
	}
	return ""
}

// copyAttributes copies owner, the extended attributes that images may have, and mode.
func copyAttributes(src, dst int, st *unix.Stat_t) error {
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	names, err := listXattrs(src)
	if err != nil {
		return err
	}
	for _, n := range names {
		v, err := getXattr(src, n)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(dst, n, v, 0); err != nil {
			return fmt.Errorf("fsetxattr %s: %w", n, err)
		}
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(dst, st.Mode&0o7777))
}

// link copies the lower file that l points to into the fix, under the link's name and, where the layer does not
// have something else there, under its own, so that both stay one file.
func (f *fixer) link(l Link) error {
	dir, st, err := f.below.find(l.Target)
	if errors.Is(err, unix.ENOENT) {
		return badEntry(l.Name, "hard link to %.300q, which is in no layer", l.Target)
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return badEntry(l.Name, "hard link to the directory %.300q", l.Target)
	}
	at, base, err := f.place(l.Name)
	if err != nil {
		return err
	}
	defer unix.Close(at) //nolint:errcheck // O_PATH
	if own, _, err := f.own.find(l.Target); !errors.Is(err, unix.ENOENT) {
		if err == nil {
			_ = unix.Close(own) //nolint:errcheck // O_PATH
		}
		return f.copyObject(dir, path.Base(l.Target), at, base)
	}
	tat, tbase, err := f.place(l.Target)
	if err != nil {
		return err
	}
	defer unix.Close(tat) //nolint:errcheck // O_PATH
	var have unix.Stat_t
	if fstatat(tat, tbase, &have) != nil {
		if err := f.copyObject(dir, path.Base(l.Target), tat, tbase); err != nil {
			return err
		}
	}
	return os.NewSyscallError("linkat", unix.Linkat(tat, tbase, at, base, 0))
}

// place opens the parent of p in the fix, made as needed.
func (f *fixer) place(p string) (at int, base string, err error) {
	if err := f.mkdirs(parentDir(p)); err != nil {
		return -1, "", err
	}
	at, err = openBeneath(f.to, parentDir(p), opathDir)
	return at, path.Base(p), os.NewSyscallError("openat2", err)
}

// copyObject copies one file, symbolic link or node with its attributes.
func (f *fixer) copyObject(from int, name string, to int, base string) error {
	var st unix.Stat_t
	if err := fstatat(from, name, &st); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	f.result.Inodes++
	ts := []unix.Timespec{st.Atim, st.Mtim}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.result.Bytes += st.Size
		return copyFile(from, name, to, base, &st)
	case unix.S_IFLNK:
		buf := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(from, name, buf)
		if err != nil {
			return os.NewSyscallError("readlinkat", err)
		}
		if err := unix.Symlinkat(string(buf[:n]), to, base); err != nil {
			return os.NewSyscallError("symlinkat", err)
		}
	default:
		if err := unix.Mknodat(to, base, st.Mode, int(st.Rdev)); err != nil { //nolint:gosec // as stat says
			return os.NewSyscallError("mknodat", err)
		}
	}
	if err := unix.Fchownat(to, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, base, st.Mode&0o7777, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(to, base, ts, unix.AT_SYMLINK_NOFOLLOW))
}

func copyFile(from int, name string, to int, base string, st *unix.Stat_t) error {
	src, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	in := os.NewFile(uintptr(src), name)
	defer in.Close() //nolint:errcheck // read only
	dst, err := unix.Openat(to, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	out := os.NewFile(uintptr(dst), base)
	_, err = io.Copy(out, in)
	if err == nil {
		err = copyAttributes(src, dst, st)
	}
	if err == nil {
		err = futimens(dst, st.Atim, st.Mtim)
	}
	return errors.Join(err, out.Close())
}

// finish sets the times of the directories, last made first.
func (f *fixer) finish() error {
	for _, d := range f.made {
		fd, err := openBeneath(f.to, d.path, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return os.NewSyscallError("openat2", err)
		}
		err = futimens(fd, d.st.Atim, d.st.Mtim)
		_ = unix.Close(fd) //nolint:errcheck // nothing written
		if err != nil {
			return err
		}
	}
	return nil
}
