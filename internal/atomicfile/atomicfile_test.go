package atomicfile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/internal/atomicfile"
)

func TestSealedRoundTrip(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rec")
	for _, want := range [][]byte{{}, []byte("x"), []byte("a\nb\n\x00c"), bytes.Repeat([]byte("z"), 1<<20)} {
		if err := atomicfile.WriteSealed(file, want, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := atomicfile.ReadSealed(file)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came back as %d, %v", len(want), len(got), err)
		}
	}
}

// Every single flipped byte and every truncation must be seen.
func TestEveryByteMatters(t *testing.T) {
	good := atomicfile.Seal([]byte(`{"id":"4f","state":"ready"}`))
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if data, err := atomicfile.Unseal(bad); err == nil && !bytes.Equal(data, good[len(good)-len(data):]) {
			t.Errorf("byte %d flipped: accepted %q", i, data)
		}
		if _, err := atomicfile.Unseal(good[:i]); !errors.Is(err, atomicfile.ErrDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(target, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(target, []byte("x"), 0o600); err == nil {
		t.Fatal("replaced a directory")
	}
	ents, err := os.ReadDir(dir)
	if err != nil || len(ents) != 1 {
		t.Errorf("left behind: %v, %v", ents, err)
	}
}

func TestQuarantineKeepsAll(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		f := filepath.Join(dir, "rec")
		if err := os.WriteFile(f, []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := atomicfile.Quarantine(f, filepath.Join(dir, "q")); err != nil {
			t.Fatal(err)
		}
	}
	ents, err := os.ReadDir(filepath.Join(dir, "q"))
	if err != nil || len(ents) != 3 {
		t.Errorf("quarantine holds %v, %v", ents, err)
	}
}

// TestReadersSeeOldOrNew: a file that was open before a write still has all of the old content, and the name all of
// the new: never is anything written into what somebody reads.
func TestReadersSeeOldOrNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rec")
	if err := atomicfile.Write(file, []byte("the old content"), 0o600); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close() //nolint:errcheck // read only
	if err := atomicfile.Write(file, []byte("new"), 0o640); err != nil {
		t.Fatal(err)
	}
	old := make([]byte, 64)
	if n, _ := open.ReadAt(old, 0); string(old[:n]) != "the old content" {
		t.Errorf("who had it open reads %q", old[:n])
	}
	b, err := os.ReadFile(file)
	fi, serr := os.Stat(file)
	if err != nil || serr != nil || string(b) != "new" || fi.Mode().Perm() != 0o640 {
		t.Errorf("the file is %q, %v, %v", b, err, serr)
	}
}

// TestLeftovers: what killed writers of one file left goes, what those of another left stays.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".tmp-a-1", ".tmp-a-22", ".tmp-ab-1", ".tmp-1", "a"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := atomicfile.RemoveLeftovers(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range ents {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != ".tmp-1 .tmp-ab-1 a" {
		t.Errorf("left are %s", got)
	}
	if err := atomicfile.RemoveLeftovers(filepath.Join(dir, "none", "a")); err != nil {
		t.Error(err)
	}
}
