package crilog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLate: a log whose file cannot be opened counts what comes, opens it by itself when it can be, and says what is missing.
func TestLate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	l, err := Open(dir, "0.log", nil)
	if err == nil {
		t.Fatal("a file in a directory that is not there")
	}
	t.Cleanup(func() { _ = l.Close() })
	at := time.Unix(100, 0)
	s := l.Stream("stdout")
	s.Write([]byte("lost\n"), nil, at)
	if l.Dropped() != 4 {
		t.Errorf("%d bytes are missed, want 4", l.Dropped())
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("too\n"), nil, at.Add(reopenEvery/2)) // it was tried a moment ago
	if l.Dropped() != 7 {
		t.Errorf("%d bytes are missed, want 7", l.Dropped())
	}
	s.Write([]byte("kept\n"), nil, at.Add(reopenEvery))
	lines := strings.Split(content(t, filepath.Join(dir, "0.log")), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "about 7 bytes of output are missing here: log directory") || !strings.HasSuffix(lines[1], " stdout F kept") {
		t.Errorf("%q", lines)
	}
}

// TestLateEnd: a stream that ends in silence has told what is missing; a log that was closed makes no file.
func TestLateEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	file := filepath.Join(dir, "0.log")
	for name, mended := range map[string]bool{"mended before the end": true, "mended after it": false} {
		l, err := Open(dir, "0.log", nil)
		if err == nil {
			t.Fatal("a file in a directory that is not there")
		}
		s := l.Stream("stderr")
		s.Write([]byte("lost\n"), nil, time.Now())
		if mended {
			err = os.Mkdir(dir, 0o755)
			s.End(time.Now())
		} else {
			s.End(time.Now())
			err = os.Mkdir(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		s.Write([]byte("after the end\n"), nil, time.Now().Add(time.Hour))
		b, err := os.ReadFile(file)
		if mended != (err == nil) || mended && strings.Count(string(b), "\n") != 1 {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}
