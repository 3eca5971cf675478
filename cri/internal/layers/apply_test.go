package layers_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

// e is one archive member; body is written as it is, whatever Size says.
type e struct {
	typ        byte
	name, link string
	body       string
	mode       int64
	uid        int
	pax        map[string]string
	major      int64
}

const (
	reg  = tar.TypeReg
	dirT = tar.TypeDir
	sym  = tar.TypeSymlink
	hard = tar.TypeLink
)

func archive(t testing.TB, entries ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range entries {
		h := &tar.Header{
			Typeflag: m.typ, Name: m.name, Linkname: m.link, Mode: m.mode, Uid: m.uid, Size: int64(len(m.body)),
			ModTime: time.Unix(1_600_000_000, 0), PAXRecords: m.pax, Devmajor: m.major,
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if m.pax != nil {
			h.Format = tar.FormatPAX
		}
		if m.typ == tar.TypeXGlobalHeader {
			h = &tar.Header{Typeflag: m.typ, PAXRecords: m.pax}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// raw makes one ustar header by hand, for what archive/tar refuses to write.
func raw(name string, typ byte, size string, body string) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], size+"\x00")
	copy(h[136:], "14000000000\x00        ")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	h = append(h, body...)
	return append(h, make([]byte, (512-len(h)%512)%512)...)
}

// jail is a directory to unpack into, with things around it that nobody may touch.
type jail struct {
	outer, root string
	before      map[string]string
}

func newJail(t testing.TB) *jail {
	t.Helper()
	j := &jail{outer: t.TempDir()}
	j.root = filepath.Join(j.outer, "store", "fs")
	for _, err := range []error{
		os.MkdirAll(j.root, 0o755), os.MkdirAll(filepath.Join(j.outer, "etc"), 0o755),
		os.WriteFile(filepath.Join(j.outer, "etc/passwd"), []byte("host"), 0o644),
		os.WriteFile(filepath.Join(j.outer, "store/record"), []byte("record"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	j.before = j.manifest(t)
	return j
}

// manifest describes everything around the root, and host files that an escape would aim at.
func (j *jail) manifest(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	note := func(p string) {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		d := fmt.Sprintf("%o %d:%d links=%d mtime=%v", st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			b, _ := os.ReadFile(p)
			d += fmt.Sprintf(" %x", sha256.Sum256(b))
		}
		out[p] = d
	}
	err := filepath.WalkDir(j.outer, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == j.root {
			return errors.Join(err, fs.SkipDir)
		}
		note(p)
		return nil
	})
	if err != nil && !errors.Is(err, fs.SkipDir) {
		t.Fatal(err)
	}
	for _, p := range []string{"/etc/passwd", "/etc/hostname", "/proc/self/status"} {
		if _, err := os.Lstat(p); err == nil && !strings.HasPrefix(p, "/proc") {
			note(p)
		}
	}
	return out
}

func (j *jail) apply(t testing.TB, b []byte, l layers.Limits) (*layers.Result, error) {
	t.Helper()
	d, err := os.Open(j.root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // read only
	return layers.Apply(context.Background(), d, bytes.NewReader(b), l)
}

// unharmed checks that nothing outside the root has changed.
func (j *jail) unharmed(t testing.TB) {
	t.Helper()
	after := j.manifest(t)
	for p, was := range j.before {
		if after[p] != was {
			t.Errorf("outside the root, %s: was %q, is %q", p, was, after[p])
		}
	}
	for p := range after {
		if _, ok := j.before[p]; !ok {
			t.Errorf("outside the root: %s appeared", p)
		}
	}
}

func TestHostileArchives(t *testing.T) {
	deep := strings.Repeat("d/", 1500) + "f"
	cases := map[string]struct {
		in   []byte
		want string // in the error; "" for success
		has  map[string]string
	}{
		"dot dot":                   {in: archive(t, e{typ: reg, name: "../../etc/passwd", body: "x"}), has: map[string]string{"etc/passwd": "x"}},
		"dot dot inside":            {in: archive(t, e{typ: reg, name: "a/../../b", body: "x"}), has: map[string]string{"b": "x"}},
		"absolute":                  {in: archive(t, e{typ: reg, name: "/etc/passwd", body: "x"}), has: map[string]string{"etc/passwd": "x"}},
		"many slashes":              {in: archive(t, e{typ: reg, name: "//etc///passwd", body: "x"}), has: map[string]string{"etc/passwd": "x"}},
		"symlink up and out":        {in: archive(t, e{typ: sym, name: "l", link: "../../etc"}, e{typ: reg, name: "l/passwd", body: "x"}), has: map[string]string{"etc/passwd": "x"}},
		"symlink absolute":          {in: archive(t, e{typ: sym, name: "l", link: "/etc"}, e{typ: reg, name: "l/passwd", body: "x"}), has: map[string]string{"etc/passwd": "x"}},
		"symlink chain":             {in: archive(t, e{typ: sym, name: "a", link: "b"}, e{typ: sym, name: "b", link: "/c/../d"}, e{typ: dirT, name: "d"}, e{typ: reg, name: "a/f", body: "x"}), has: map[string]string{"d/f": "x"}},
		"symlink loop":              {in: archive(t, e{typ: sym, name: "a", link: "b"}, e{typ: sym, name: "b", link: "a"}, e{typ: reg, name: "a/f", body: "x"}), want: `entry "a/f"`},
		"symlink to proc":           {in: archive(t, e{typ: sym, name: "p", link: "/proc/self/root/etc"}, e{typ: reg, name: "p/x", body: "x"}), has: map[string]string{"proc/self/root/etc/x": "x"}},
		"dangling parent":           {in: archive(t, e{typ: sym, name: "l", link: "/none"}, e{typ: reg, name: "l/f", body: "x"}), has: map[string]string{"none/f": "x"}},
		"file through own link":     {in: archive(t, e{typ: sym, name: "l", link: "/etc/passwd"}, e{typ: reg, name: "l", body: "x"}), has: map[string]string{"l": "x"}},
		"directory swapped":         {in: archive(t, e{typ: dirT, name: "d"}, e{typ: reg, name: "d/a", body: "1"}, e{typ: sym, name: "d", link: "../../etc"}, e{typ: reg, name: "d/b", body: "x"}), has: map[string]string{"etc/b": "x"}},
		"cached parent swapped":     {in: archive(t, e{typ: dirT, name: "d/e"}, e{typ: reg, name: "d/e/a", body: "1"}, e{typ: sym, name: "d", link: "/"}, e{typ: reg, name: "d/e/b", body: "x"}), has: map[string]string{"e/b": "x"}},
		"parent replaced by file":   {in: archive(t, e{typ: dirT, name: "d"}, e{typ: reg, name: "d/a", body: "1"}, e{typ: reg, name: "d", body: "f"}, e{typ: reg, name: "d/a", body: "x"}), want: `entry "d/a"`},
		"hard link out":             {in: archive(t, e{typ: hard, name: "h", link: "../../etc/passwd"}), has: nil},
		"hard link to host file":    {in: archive(t, e{typ: hard, name: "h", link: "/etc/hostname"}), has: nil},
		"hard link via symlink":     {in: archive(t, e{typ: sym, name: "l", link: "../../etc"}, e{typ: hard, name: "h", link: "l/passwd"}, e{typ: reg, name: "h", body: "x"}), has: map[string]string{"h": "x"}},
		"hard link to symlink":      {in: archive(t, e{typ: sym, name: "l", link: "/etc/passwd"}, e{typ: hard, name: "h", link: "l"}, e{typ: reg, name: "h", body: "x"}), has: map[string]string{"h": "x"}},
		"hard link to directory":    {in: archive(t, e{typ: dirT, name: "d"}, e{typ: hard, name: "h", link: "d"}), want: "hard link to the directory"},
		"hard link to root":         {in: archive(t, e{typ: hard, name: "h", link: "/"}), want: "hard link to the root"},
		"hard link to itself":       {in: archive(t, e{typ: hard, name: "h", link: "h"}), want: "itself"},
		"hard link to itself, real": {in: archive(t, e{typ: reg, name: "h", body: "x"}, e{typ: hard, name: "h", link: "./h"}), has: map[string]string{"h": "x"}},
		"whiteout of parent":        {in: archive(t, e{typ: reg, name: "etc/.wh..."}), want: "whiteout of the directory itself"},
		"whiteout of dot":           {in: archive(t, e{typ: reg, name: ".wh.."}), want: "whiteout of the directory itself"},
		"whiteout of nothing":       {in: archive(t, e{typ: reg, name: ".wh."}), want: "whiteout of the directory itself"},
		"whiteout of root parent":   {in: archive(t, e{typ: reg, name: ".wh..."}), want: "whiteout of the directory itself"},
		"whiteout through symlink":  {in: archive(t, e{typ: sym, name: "l", link: "../../etc"}, e{typ: reg, name: "l/.wh.passwd"})},
		"opaque through symlink":    {in: archive(t, e{typ: sym, name: "l", link: "../.."}, e{typ: reg, name: "l/.wh..wh..opq"})},
		"aufs book-keeping":         {in: archive(t, e{typ: reg, name: ".wh..wh.plnk", body: "x"}, e{typ: reg, name: "a", body: "x"}), has: map[string]string{"a": "x"}},
		"whiteout as a directory":   {in: archive(t, e{typ: reg, name: ".wh.etc/somefile", body: "x"}), has: map[string]string{".wh.etc/somefile": "x"}},
		"root entry":                {in: archive(t, e{typ: dirT, name: "./", mode: 0o700, uid: 5}, e{typ: dirT, name: "/"}, e{typ: sym, name: "..", link: "/etc"}, e{typ: reg, name: "a", body: "x"}), has: map[string]string{"a": "x"}},
		"4 KiB name":                {in: archive(t, e{typ: reg, name: strings.Repeat("x", 4096), body: "x", pax: map[string]string{"comment": "c"}}), want: "bytes long"},
		"long component":            {in: archive(t, e{typ: reg, name: strings.Repeat("x", 300), body: "x"}), want: "file name too long"},
		"deep":                      {in: archive(t, e{typ: reg, name: deep, body: "x"}), want: "deeper than"},
		"not UTF-8":                 {in: raw("a\xff\xfe", reg, "00000000001", "x"), has: map[string]string{"a\xff\xfe": "x"}},
		"newline":                   {in: archive(t, e{typ: reg, name: "a\nb", body: "x"}), has: map[string]string{"a\nb": "x"}},
		"symlink target long":       {in: archive(t, e{typ: sym, name: "l", link: strings.Repeat("x", 5000), pax: map[string]string{"comment": "c"}}), want: "bad symbolic link"},
		"symlink target empty":      {in: raw("l", sym, "00000000000", ""), want: "bad symbolic link"},
		"unknown type":              {in: raw("x", 'Z', "00000000000", ""), want: "not supported"},
		"uid -1":                    {in: archive(t, e{typ: reg, name: "a", uid: 1<<32 - 1, pax: map[string]string{"comment": "c"}}), want: "out of range"},
		"device out of range":       {in: archive(t, e{typ: tar.TypeBlock, name: "a", major: 1 << 13}), want: "out of range"},
		"short file":                {in: raw("a", reg, "00000010000", "only this"), want: `invalid layer archive`},
		"size over limit":           {in: raw("a", reg, "77777777777", "x"), want: "invalid layer archive"},
		"negative size":             {in: raw("a", reg, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "x"), want: "invalid layer archive"},
		"bad checksum":              {in: append([]byte("garbage"), make([]byte, 1017)...), want: "invalid layer archive"},
		"trailing garbage":          {in: append(archive(t, e{typ: reg, name: "a", body: "x"}), "trailing"...), has: map[string]string{"a": "x"}},
		"no end marker":             {in: raw("a", reg, "00000000001", "x"), has: map[string]string{"a": "x"}},
		"empty":                     {in: nil},
		"overlay attributes":        {in: archive(t, e{typ: dirT, name: "d", pax: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y"}}, e{typ: reg, name: "d/a", body: "x"}), has: map[string]string{"d/a": "x"}},
		"whiteout device":           {in: archive(t, e{typ: tar.TypeChar, name: "a"}, e{typ: reg, name: "b", body: "x"}), has: map[string]string{"b": "x"}},
		"global header":             {in: archive(t, e{typ: tar.TypeXGlobalHeader, pax: map[string]string{"comment": "x"}}, e{typ: reg, name: "a", body: "x"}), has: map[string]string{"a": "x"}},
		"xattr name of 300 bytes":   {in: archive(t, e{typ: reg, name: "a", pax: map[string]string{"SCHILY.xattr.user." + strings.Repeat("k", 300): "v"}}), want: "extended attribute"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			j := newJail(t)
			_, err := j.apply(t, c.in, layers.Limits{})
			j.unharmed(t)
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
			if c.want == "" && err != nil {
				t.Fatal(err)
			}
			if strings.Contains(fmt.Sprint(err), "invalid layer archive") && errs.Of(err) != errs.FailedPrecondition {
				t.Errorf("class %v", errs.Of(err))
			}
			for p, want := range c.has {
				var st unix.Stat_t
				b, err := os.ReadFile(filepath.Join(j.root, p))
				if err != nil || string(b) != want || unix.Lstat(filepath.Join(j.root, p), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
					t.Errorf("%s: %q, %v", p, b, err)
				}
			}
		})
	}
}

func TestOverlayAttributesAreDropped(t *testing.T) {
	j := newJail(t)
	if _, err := j.apply(t, archive(t, e{typ: dirT, name: "d", pax: map[string]string{
		"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.ok": "v",
		"SCHILY.xattr.trusted.other": "v", "SCHILY.xattr.security.selinux": "label",
	}}), layers.Limits{}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1024)
	n, err := unix.Listxattr(filepath.Join(j.root, "d"), buf)
	if got := string(buf[:n]); err != nil || got != "user.ok\x00" {
		t.Errorf("attributes %q, %v", got, err)
	}
}

func TestLimits(t *testing.T) {
	many := func(n int, body string) []byte {
		var es []e
		for i := range n {
			es = append(es, e{typ: reg, name: fmt.Sprintf("f%d", i), body: body})
		}
		return archive(t, es...)
	}
	over := func(n int) []byte { // the same file again and again: what counts is what is written
		var es []e
		for range n {
			es = append(es, e{typ: reg, name: "f", body: strings.Repeat("x", 100)})
		}
		return archive(t, es...)
	}
	var dirs []e
	for i := range 100 {
		dirs = append(dirs, e{typ: dirT, name: fmt.Sprintf("dir-%d", i)})
	}
	for name, c := range map[string]struct {
		in    []byte
		limit layers.Limits
		want  string
	}{
		"bytes":       {many(11, "0123456789"), layers.Limits{Bytes: 100}, "over its limit"},
		"overwritten": {over(11), layers.Limits{Bytes: 1000}, "over its limit"},
		"entries":     {many(11, ""), layers.Limits{Entries: 10}, "more than 10 entries"},
		"names":       {archive(t, dirs...), layers.Limits{Names: 1000}, "directory names"},
		"fits":        {many(10, "0123456789"), layers.Limits{Bytes: 100, Entries: 10}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := newJail(t).apply(t, c.in, c.limit)
			if c.want == "" {
				if err != nil || res.Bytes != 100 || res.Inodes != 10 {
					t.Errorf("%+v, %v", res, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestDeepRemoval checks that a tree as deep as allowed can be replaced, and cleared.
func TestDeepRemoval(t *testing.T) {
	j := newJail(t)
	deep := strings.TrimSuffix(strings.Repeat("d/", 1024), "/")
	res, err := j.apply(t, archive(t, e{typ: reg, name: deep, body: "x"}, e{typ: reg, name: "d", body: "y"}), layers.Limits{})
	if err != nil || res.Inodes != 1 || res.Bytes != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// FuzzApply looks for escapes and panics; what is unpacked must agree with what is reported.
func FuzzApply(f *testing.F) {
	f.Add(archive(f, e{typ: dirT, name: "a"}, e{typ: reg, name: "a/b", body: "x"}, e{typ: sym, name: "l", link: "../.."}, e{typ: reg, name: "l/.wh.x"}))
	f.Add(archive(f, e{typ: hard, name: "h", link: "a/b"}, e{typ: reg, name: ".wh..wh..opq"}))
	f.Add(raw("a", reg, "00000000001", "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := newJail(t)
		res, err := j.apply(t, b, layers.Limits{Bytes: 1 << 20, Entries: 200, Names: 64 << 10})
		j.unharmed(t)
		if err != nil {
			return
		}
		var inodes int64
		seen := map[uint64]bool{}
		_ = filepath.WalkDir(j.root, func(p string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && p != j.root && unix.Lstat(p, &st) == nil && !seen[st.Ino] {
				seen[st.Ino] = true
				inodes++
			}
			return nil
		})
		if inodes != res.Inodes {
			t.Errorf("%d inodes, reported %d", inodes, res.Inodes)
		}
	})
}
