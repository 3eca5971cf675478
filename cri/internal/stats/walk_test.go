package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// fill makes count empty files in a directory.
func fill(t *testing.T, dir string, count int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		if err := unix.Mknod(filepath.Join(dir, fmt.Sprint(i)), unix.S_IFREG|0o644, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWalkEnds: a walk ends with its context between two files, and what it has seen is not told as the whole.
func TestWalkEnds(t *testing.T) {
	dir := t.TempDir()
	fill(t, filepath.Join(dir, "a", "b"), 300)
	if s, complete := walk(t.Context(), dir, 1000); !complete || s.inodes != 303 {
		t.Errorf("%+v, complete: %v", s, complete)
	}
	if s, complete := walk(t.Context(), dir, 302); complete || s.inodes != 302 {
		t.Errorf("one too many: %+v, complete: %v", s, complete)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, complete := walk(ctx, dir, 1000); complete || s.inodes != 0 {
		t.Errorf("after its end: %+v, complete: %v", s, complete)
	}
}

// TestWalkStaysInside: what a container puts in the place of a directory that was just seen, a link out of its layer or a pipe
// that nobody writes to, is not looked into, and does not hold the walk up.
func TestWalkStaysInside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	fill(t, filepath.Join(outside, "below"), 10)
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "link")), unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if s, complete := walk(t.Context(), dir, 1000); !complete || s.inodes != 3 {
		t.Errorf("%+v, complete: %v", s, complete)
	}
	root, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close() //nolint:errcheck // read only
	for _, name := range []string{"link", "link/below", "pipe", "gone"} {
		seen := make(chan int, 1)
		go func() {
			n := 0
			_, _ = entries(root, name, func(*unix.Stat_t) bool { n++; return true })
			seen <- n
		}()
		select {
		case n := <-seen:
			if n > 0 {
				t.Errorf("%d entries of %s were seen", n, name)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the walk hangs", name)
		}
	}
}

// TestLargeLayerWaits: one with many files is not measured beside the others, but by itself, and Run ends while it is.
func TestLargeLayerWaits(t *testing.T) {
	c, dir := collector(t)
	fill(t, filepath.Join(dir, "containers", "large", "upper"), few)
	if _, all := c.measure(t.Context(), "large", few); all {
		t.Error("a large layer was measured among the small ones")
	}
	if s, all := c.measure(t.Context(), "large", few+1); !all || s.inodes != few+1 {
		t.Errorf("by itself: %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
}
