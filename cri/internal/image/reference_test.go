package image_test

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/image"
)

// tree describes a directory: path to everything a container can see of the object there.
type tree map[string]string

// readTree walks root. Inode numbers become the first path that has them, so hard links compare by who shares.
func readTree(t testing.TB, root string) tree {
	t.Helper()
	out, inodes := tree{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		d := fmt.Sprintf("mode=%o owner=%d:%d mtime=%d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			d += fmt.Sprintf(" sum=%x", sha256.Sum256(b))
		case unix.S_IFLNK:
			l, _ := os.Readlink(p)
			d += " to=" + l
		case unix.S_IFCHR, unix.S_IFBLK:
			d += fmt.Sprintf(" dev=%x", st.Rdev)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = rel
			}
			d += " file=" + inodes[st.Ino]
		}
		out[rel] = d + xattrs(t, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func xattrs(t testing.TB, p string) string {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		v := make([]byte, 4096)
		k, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf(" %s=%x", name, v[:k]))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// reference applies layers in order with the plain file API: what a sequential extraction gives.
func reference(t testing.TB, root string, layers ...[]member) {
	t.Helper()
	mtimes := map[string]time.Time{}
	for _, l := range layers {
		for _, m := range l { // whiteouts speak of lower layers, wherever they stand
			p := path.Clean(m.Name)
			base := path.Base(p)
			switch {
			case base == ".wh..wh..opq":
				entries, _ := os.ReadDir(filepath.Join(root, path.Dir(p)))
				for _, e := range entries {
					must(t, os.RemoveAll(filepath.Join(root, path.Dir(p), e.Name())))
				}
			case strings.HasPrefix(base, ".wh."):
				must(t, os.RemoveAll(filepath.Join(root, path.Dir(p), base[4:])))
			}
		}
		for _, m := range l {
			refEntry(t, root, m, mtimes)
		}
		for _, p := range slices.Sorted(maps.Keys(mtimes)) {
			if fi, err := os.Lstat(filepath.Join(root, p)); err == nil && fi.IsDir() {
				must(t, os.Chtimes(filepath.Join(root, p), mtimes[p], mtimes[p]))
			}
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refEntry(t testing.TB, root string, m member, mtimes map[string]time.Time) {
	t.Helper()
	p := path.Clean(m.Name)
	full := filepath.Join(root, p)
	for d, todo := path.Dir(p), []string{}; ; d = path.Dir(d) {
		if _, err := os.Lstat(filepath.Join(root, d)); err == nil {
			for _, q := range slices.Backward(todo) {
				must(t, os.Mkdir(filepath.Join(root, q), 0o755))
				mtimes[q] = time.Unix(0, 0)
			}
			break
		}
		todo = append(todo, d)
	}
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return
	}
	if fi, err := os.Lstat(full); err == nil && (!fi.IsDir() || m.Typeflag != tar.TypeDir) {
		must(t, os.RemoveAll(full))
	}
	switch m.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(full, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		mtimes[p] = m.ModTime
	case tar.TypeReg:
		must(t, os.WriteFile(full, []byte(m.body), 0o600))
	case tar.TypeSymlink:
		must(t, os.Symlink(m.Linkname, full))
	case tar.TypeLink:
		must(t, os.Link(filepath.Join(root, m.Linkname), full))
		return
	case tar.TypeChar, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeFifo: unix.S_IFIFO}[m.Typeflag]
		must(t, unix.Mknod(full, kind|0o600, int(unix.Mkdev(uint32(m.Devmajor), uint32(m.Devminor)))))
	}
	must(t, os.Lchown(full, m.Uid, m.Gid))
	for k, v := range m.PAXRecords {
		must(t, unix.Lsetxattr(full, strings.TrimPrefix(k, "SCHILY.xattr."), []byte(v), 0))
	}
	if m.Typeflag != tar.TypeSymlink {
		must(t, unix.Chmod(full, uint32(m.Mode)))
	}
	ts := []unix.Timespec{{Sec: m.ModTime.Unix(), Nsec: int64(m.ModTime.Nanosecond())}, {Sec: m.ModTime.Unix(), Nsec: int64(m.ModTime.Nanosecond())}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, full, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// mounted reads the overlay of a rootfs.
func mounted(t testing.TB, fs image.Rootfs) tree {
	t.Helper()
	mnt := t.TempDir()
	lower := slices.Clone(fs.Lower)
	if len(lower) == 1 {
		lower = append(lower, t.TempDir())
	}
	if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Fatalf("mount %v: %v", lower, err)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	return readTree(t, mnt)
}
