package unpacker_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/unpacker"
	"github.com/berth-project/berth/proto/errs"
)

var update = flag.Bool("update", false, "write testdata/corpus.golden from what happens; review it")

// A layer of the corpus: the blob, and what it unpacks to (nil: the blob itself is the archive, or nothing sensible).
type sample struct {
	packed, plain []byte
}

// tight are the corpus's limits: far below the default ones, so that what is over them is quick to make.
func tight() layers.Limits { return layers.Limits{Bytes: 16 << 20, Entries: 20_000, Names: 1 << 20} }

// maxRSS is the most memory that any layer of the corpus may take in its child, in bytes.
const maxRSS = 256 << 20

// TestCorpus unpacks each hostile layer in a confined child. What becomes of it stands in testdata/corpus.golden: the
// exact tree or the exact error. Nothing outside the layer may change, memory and disk stay bounded, and where a layer
// is accepted, overlayfs shows just what it holds.
func TestCorpus(t *testing.T) {
	golden := readGolden(t)
	all := map[string]sample{}
	for _, part := range []map[string]sample{pathCases(t), linkCases(t), whiteoutCases(t), headerCases(t), attributeCases(t), streamCases(t), boundCases(t)} {
		for name, s := range part {
			if _, twice := all[name]; twice {
				t.Fatalf("two cases are named %q", name)
			}
			all[name] = s
		}
	}
	if len(all) < 150 {
		t.Errorf("%d cases", len(all))
	}
	var peak atomic.Int64
	var wg sync.WaitGroup
	cfg := config()
	cfg.Observe = func(pid int) { wg.Go(func() { watch(pid, &peak) }) }
	u := unpacker.New(cfg)
	got := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			got[name] = outcome(t, u, all[name])
			if want, ok := golden[name]; !*update && (!ok || got[name] != want) {
				t.Errorf("got\n%swant\n%s", got[name], want)
			}
		})
	}
	wg.Wait()
	t.Logf("%d layers, %d refused, at most %d MiB in a child", len(all), refused(got), peak.Load()>>20)
	if peak.Load() > maxRSS {
		t.Errorf("a child took %d bytes, at most %d are allowed", peak.Load(), maxRSS)
	}
	if *update {
		writeGolden(t, got)
	}
}

// watch notes the most memory that a process ever had, until it is gone. Not rusage's: that counts this program, of
// which every child is a copy before it executes its own.
func watch(pid int, peak *atomic.Int64) {
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, ok := strings.Cut(string(b), "VmHWM:")
		if err != nil || !ok {
			return // ended
		}
		var kb int64
		_, name, _ := strings.Cut(string(b), "Name:\t")
		if _, err := fmt.Sscan(rest, &kb); err == nil && strings.HasPrefix(name, "unpacker") {
			peak.Store(max(peak.Load(), kb<<10))
		}
		time.Sleep(time.Millisecond)
	}
}

func refused(got map[string]string) (n int) {
	for _, g := range got {
		if strings.Contains(g, "refused") {
			n++
		}
	}
	return n
}

// outcome unpacks one layer and says what came of it, a line for each object, or the error.
func outcome(t *testing.T, u *unpacker.Unpacker, s sample) string {
	t.Helper()
	j := newJail(t)
	b := blobOf(s.packed, s.plain)
	if s.plain == nil {
		b = blobOf(s.packed, s.packed)
	}
	res, err := u.Unpack(t.Context(), open(t, j.layer), bytes.NewReader(s.packed), b, tight())
	j.unharmed(t)
	if used := diskUse(t, j.layer); used > 3*tight().Bytes {
		t.Errorf("%d bytes on the disk", used)
	}
	if err != nil {
		if c := errs.Of(err); c != errs.FailedPrecondition {
			t.Errorf("class %v of %v", c, err)
		}
		text := err.Error()
		for _, d := range []string{b.Digest.String(), b.DiffID.String()} {
			text = strings.ReplaceAll(text, d, "sha256:…")
		}
		return fmt.Sprintf("\trefused: %s\n", text)
	}
	out := describe(res)
	if err := res.Seal(int(open(t, j.layer).Fd())); err != nil {
		t.Error(err)
	}
	tree := list(t, j.layer)
	overlayShows(t, j.layer, tree)
	if n := int64(len(tree) - len(hardLinks(tree))); n != res.Inodes {
		t.Errorf("%d inodes, reported %d", n, res.Inodes)
	}
	var lines string
	for i, l := range tree {
		lines += "\t" + l.String() + "\n"
		if i == 2 && len(tree) > 50 {
			out += lines
		}
	}
	if len(tree) > 50 {
		return out + fmt.Sprintf("\t… %d in all, %x\n", len(tree), sha256.Sum256([]byte(lines)))
	}
	return out + lines
}

// describe lists what a result leaves open.
func describe(res *layers.Result) (out string) {
	if res.Opaque {
		out += "\topaque: the root\n"
	}
	if n := len(res.Opaques); n > 20 {
		out += fmt.Sprintf("\topaque: %d directories\n", n)
	}
	for _, p := range res.Opaques[:min(len(res.Opaques), 20)] {
		out += fmt.Sprintf("\topaque: %q\n", short(p))
	}
	for _, l := range res.Links {
		out += fmt.Sprintf("\tlink to a lower layer: %q -> %q\n", l.Name, l.Target)
	}
	if out == "" && res.Inodes == 0 {
		out = "\tempty\n"
	}
	return out
}

// object is one thing in a tree.
type object struct {
	path, kind, what string
	st               unix.Stat_t
}

// String is a line of the golden file.
func (o object) String() string {
	return fmt.Sprintf("%s %04o %d:%d %d %q%s", o.kind, o.st.Mode&0o7777, o.st.Uid, o.st.Gid, o.st.Mtim.Sec, short(o.path), o.what)
}

func short(s string) string {
	if len(s) > 100 {
		return fmt.Sprintf("%s… (%d bytes)", s[:40], len(s))
	}
	return s
}

// list walks a tree; hard links are told by their first name.
func list(t *testing.T, root string) []object {
	t.Helper()
	var out []object
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		o := object{path: strings.TrimPrefix(p, root+"/")}
		if err := unix.Lstat(p, &o.st); err != nil {
			return err
		}
		if o.kind, o.what = kindOf(t, p, &o.st); o.kind == "whiteout" {
			o.st.Mtim.Sec = 0 // it has no meaning
		}
		if o.st.Nlink > 1 && o.kind != "dir" {
			if to := first[o.st.Ino]; to != "" {
				o.kind = "hard"
				o.what = fmt.Sprintf(" = %q", to)
			} else {
				first[o.st.Ino] = o.path
			}
		}
		o.what += attributesOf(t, p)
		out = append(out, o)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hardLinks(tree []object) (out []object) {
	for _, o := range tree {
		if o.kind == "hard" {
			out = append(out, o)
		}
	}
	return out
}

func kindOf(t *testing.T, p string, st *unix.Stat_t) (kind, what string) {
	t.Helper()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "dir", ""
	case unix.S_IFLNK:
		to, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		return "link", fmt.Sprintf(" -> %q", short(to))
	case unix.S_IFREG:
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) <= 20 {
			return "file", fmt.Sprintf(" %q", b)
		}
		return "file", fmt.Sprintf(" %d bytes", len(b))
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return "whiteout", ""
		}
		return "char", fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		return "block", fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		return "fifo", ""
	}
	return "other", ""
}

func attributesOf(t *testing.T, p string) (out string) {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")) {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprintf(" %s=%q", name, short(string(v[:n])))
	}
	return out
}

// overlayShows mounts the layer over an empty one and compares: all that is no whiteout, with type, mode and owner.
func overlayShows(t *testing.T, layer string, tree []object) {
	t.Helper()
	empty, mnt := temporary(t), temporary(t)
	if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY|unix.MS_NODEV, "lowerdir="+layer+":"+empty); err != nil {
		t.Fatalf("overlay: %v", err)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, o := range tree {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(mnt, o.path), &st)
		if o.kind == "whiteout" {
			if !errors.Is(err, unix.ENOENT) {
				t.Errorf("overlay shows the whiteout %q: %v", short(o.path), err)
			}
			continue
		}
		if err != nil || st.Mode != o.st.Mode || st.Uid != o.st.Uid || st.Gid != o.st.Gid || st.Rdev != o.st.Rdev {
			t.Errorf("overlay: %q: %v, mode %o instead of %o", short(o.path), err, st.Mode, o.st.Mode)
		}
	}
}

func diskUse(t *testing.T, root string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil {
			n += st.Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func readGolden(t *testing.T) map[string]string {
	t.Helper()
	out, name := map[string]string{}, ""
	b, err := os.ReadFile("testdata/corpus.golden")
	if err != nil && !*update {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "\t") {
			out[name] += l
		} else {
			name = strings.TrimSpace(l)
		}
	}
	return out
}

func writeGolden(t *testing.T, got map[string]string) {
	t.Helper()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(got)) {
		b.WriteString(name + "\n" + got[name])
	}
	if err := os.WriteFile("testdata/corpus.golden", []byte(b.String()), 0o644); err != nil { //nolint:gosec // a source
		t.Fatal(err)
	}
}
