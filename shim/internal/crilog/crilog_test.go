package crilog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) (*Log, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := Open(dir, "0.log", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, filepath.Join(dir, "0.log")
}

func content(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFormat(t *testing.T) {
	l, file := open(t)
	at := time.Date(2026, 11, 22, 12, 0, 0, 5000, time.FixedZone("x", 7200))
	s := l.Stream("stdout")
	long := strings.Repeat("a", MaxLine)
	for _, part := range []string{"one\ntw", "o\r\n", "\n", long + "b\n", long + "\n", "rest"} {
		s.Write([]byte(part), nil, at)
	}
	if s.Pending() != 4 {
		t.Errorf("pending %d", s.Pending())
	}
	s.End(at)
	const p = "2026-11-22T10:00:00.000005000Z stdout "
	want := p + "F one\n" + p + "F two\n" + p + "F \n" + p + "P " + long + "\n" + p + "F b\n" + p + "F " + long + "\n" + p + "P rest\n"
	if got := content(t, file); got != want {
		t.Errorf("got %.200q\nwant %.200q", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Mode&0o777 != 0o640 {
		t.Errorf("mode %o, %v", st.Mode, err)
	}
}

// TestAnyCut writes the same bytes cut at every place; the lines must be the same.
func TestAnyCut(t *testing.T) {
	text := "a\nbc\r\n\n" + strings.Repeat("x", 50) + "\nend"
	at := time.Unix(0, 0)
	var want string
	for cut := range len(text) + 1 {
		l, file := open(t)
		s := l.Stream("stderr")
		buf := s.Write([]byte(text[:cut]), nil, at)
		s.Write([]byte(text[cut:]), buf, at)
		s.End(at)
		got := content(t, file)
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("cut at %d: %q, want %q", cut, got, want)
		}
	}
}

func TestHostileNames(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", filepath.Join(dir, "dirlink")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "../x", "fifo", "dirlink/x", "a\x00b"} {
		if l, err := Open(dir, name, nil); err == nil {
			_ = l.Close()
			t.Errorf("%q was opened", name)
		}
	}
	if _, err := os.Stat(outside); err == nil {
		t.Error("a file was made through a link")
	}
}

func TestReopen(t *testing.T) {
	l, file := open(t)
	s := l.Stream("stdout")
	s.Write([]byte("old\nkept "), nil, time.Unix(0, 0))
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("line\n"), nil, time.Unix(0, 0))
	if a, b := content(t, file+".1"), content(t, file); !strings.HasSuffix(a, "F old\n") || !strings.HasSuffix(b, "F kept line\n") {
		t.Errorf("%q, %q", a, b)
	}
}

// TestFullDisk fills a small file system, goes on writing, and makes room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("x", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 48<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(dir, "log", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s := l.Stream("stdout")
	chunk := bytes.Repeat([]byte("0123456789abcde\n"), 512)
	for range 10 {
		s.Write(chunk, nil, time.Now())
	}
	if l.Dropped() == 0 {
		t.Fatal("nothing was dropped on a full disk")
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("after\n"), nil, time.Now())
	lines := strings.Split(strings.TrimSpace(content(t, filepath.Join(dir, "log"))), "\n")
	last := lines[len(lines)-2:]
	if !strings.Contains(last[0], "bytes of output are missing here: ") || !strings.HasSuffix(last[1], " stdout F after") {
		t.Errorf("the log ends with %q", last)
	}
	// the record that the full disk cut short ends before the confession begins
	if at, said, _ := strings.Cut(last[0], " "); !strings.HasPrefix(said, "stderr F [berth: about ") {
		t.Errorf("half a record stands before the confession: %q", last[0])
	} else if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
		t.Errorf("the confession: %v", err)
	}
	if l.Dropped() != 0 {
		t.Error("still dropped after the confession")
	}
}

func TestNoFile(t *testing.T) {
	l, err := Open("/nonexistent", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Stream("stdout").Write([]byte("x\n"), nil, time.Now())
	if err := l.Reopen(); err != nil {
		t.Error(err)
	}
}

// TestKilledAnywhere stops a writer at every announced step, by copying its journal and log as they are then, and
// lets another one finish: every byte is in the log once.
func TestKilledAnywhere(t *testing.T) {
	text := "first\nsecond li" + "ne\n" + strings.Repeat("z", 100) + "\nend of it\nunfinished"
	chunks := []int{10, 5, 40, 71, 17}
	for stop := range 3 * len(chunks) {
		dir := t.TempDir()
		step, rest := 0, text
		killed := func() bool { step++; return step > stop }
		func() {
			l, s := journaled(t, dir)
			defer func() { _ = l.file.Close() }() // but not the journal: its file stays
			for _, n := range chunks {
				n = min(n, len(rest))
				in := s.Buffer(n)
				if killed() {
					return // announced, not read
				}
				copy(in, rest)
				rest = rest[n:]
				if killed() {
					return // read, not written
				}
				if stop%3 == 2 && step == stop { // written, not committed
					records, _, _, payload := s.cut(nil, in, time.Unix(1, 0))
					if len(records) > 0 {
						l.write(records, payload, time.Unix(1, 0), func(off int64, ino uint64) { s.slot.writing(len(in), off, ino, time.Unix(1, 0)) })
						return
					}
				}
				s.Write(in, nil, time.Unix(1, 0))
				if killed() {
					return
				}
			}
		}()
		l, s := journaled(t, dir)
		for len(rest) > 0 {
			n := min(7, len(rest))
			in := s.Buffer(n)
			copy(in, rest)
			rest = rest[n:]
			s.Write(in, nil, time.Unix(2, 0))
		}
		s.End(time.Unix(2, 0))
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		var got strings.Builder
		for line := range strings.Lines(content(t, filepath.Join(dir, "log"))) {
			line = line[38:]
			if v, ok := strings.CutPrefix(line, "P "); ok {
				got.WriteString(strings.TrimSuffix(v, "\n"))
			} else {
				got.WriteString(strings.TrimPrefix(line, "F "))
			}
		}
		if got.String() != text {
			t.Errorf("stopped at step %d: %q", stop, got.String())
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
	}
}

func journaled(t *testing.T, dir string) (*Log, *Stream) {
	t.Helper()
	j, err := OpenJournal(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(dir, "log", j)
	if err != nil {
		t.Fatal(err)
	}
	return l, l.Stream("stdout")
}

func BenchmarkWrite(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(dir, "log", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test
	s := l.Stream("stdout")
	var chunk []byte
	for i := range 300 {
		chunk = fmt.Appendf(chunk, "line %d with the length of an ordinary log message, about a hundred bytes of text and numbers\n", i)
	}
	b.SetBytes(int64(len(chunk)))
	var buf []byte
	for i := 0; b.Loop(); i++ {
		buf = s.Write(chunk, buf, time.Now())
		if i%1000 == 999 {
			_ = os.Truncate(filepath.Join(dir, "log"), 0)
		}
	}
}
