// Package fresh makes empty ext4 file systems for pull benchmarks: on one that has deleted many files within the
// last minute, ext4 takes up to twenty times longer to make new ones, and the second pull pays for the first.
package fresh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// FS is a file system in a file, on a loop device that goes with its mount.
type FS struct{ file, dir string }

// size is sparse.
const size = 4 << 30

// Mount makes a new file system in file and mounts it on dir.
func Mount(ctx context.Context, file, dir string) (*FS, error) {
	f := &FS{file: file, dir: dir}
	if err := errors.Join(os.MkdirAll(dir, 0o711), os.RemoveAll(file)); err != nil {
		return nil, err
	}
	w, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(w.Truncate(size), w.Close()); err != nil {
		return nil, err
	}
	// nothing is left for lazy background threads to write during the measurement
	if err := run(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file); err != nil {
		return nil, err
	}
	return f, run(ctx, "mount", "-o", "loop", file, dir)
}

// Unmount removes it.
func (f *FS) Unmount() error {
	var err error
	if uerr := unix.Unmount(f.dir, unix.MNT_DETACH); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
		err = fmt.Errorf("unmount %s: %w", f.dir, uerr)
	}
	return errors.Join(err, os.Remove(f.file))
}

func run(ctx context.Context, argv ...string) error {
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, out)
	}
	return nil
}
