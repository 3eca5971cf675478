package removal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// deep makes a tree that has a file in each of depth directories, one in the other, and is deeper than any path is long.
func deep(t *testing.T, dir string, depth int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range depth {
		if err == nil {
			err = errors.Join(unix.Mkdirat(at, "d", 0o755), unix.Mknodat(at, "f", unix.S_IFREG, 0))
		}
		if err != nil {
			t.Fatal(err)
		}
		below, oerr := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		err = errors.Join(oerr, unix.Close(at))
		at = below
	}
	if err := errors.Join(err, unix.Close(at)); err != nil {
		t.Fatal(err)
	}
}

// TestTree: a tree goes whatever is in it, and what its links name stays.
func TestTree(t *testing.T) {
	dir, kept := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "kept")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755), os.MkdirAll(kept, 0o755), os.WriteFile(filepath.Join(kept, "file"), nil, 0o644),
		os.Symlink(kept, filepath.Join(dir, "a/link")), unix.Mknod(filepath.Join(dir, "a/whiteout"), unix.S_IFCHR, 0), os.Mkdir(filepath.Join(dir, "closed"), 0)); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 { // more than one batch
		if err := unix.Mknod(filepath.Join(dir, "a/b", fmt.Sprint(i)), unix.S_IFREG, 0); err != nil {
			t.Fatal(err)
		}
	}
	deep(t, filepath.Join(dir, "a/b/c"), 3000)
	for range 2 { // the second finds nothing
		if err := Tree(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree is there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(kept, "file")); err != nil {
		t.Errorf("what a link names: %v", err)
	}
}

// TestTreeStops: it ends with its context, or with what cannot be removed, and a later one goes on.
func TestTreeStops(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(dir, "held"), 0o755); err != nil {
		t.Fatal(err)
	}
	deep(t, dir, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Tree(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 3 {
		t.Errorf("after its end something was removed: %v, %v", names, err)
	}
	held := filepath.Join(dir, "held") // as a mount point
	if err := unix.Mount("tmpfs", held, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	err := Tree(t.Context(), dir)
	if uerr := unix.Unmount(held, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("something is mounted there: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("what can be removed is left: %v, %v", names, err)
	}
	if err := Tree(t.Context(), dir); err != nil {
		t.Error(err)
	}
}
