// Package removal deletes trees that somebody else has filled, with any number of files and directories as deep as they liked,
// and can be told to stop. They are not walked but flattened: what is not empty below one of a tree's directories is moved
// up beside it. So it takes two descriptors and a few kilobytes for every tree, where a recursive removal holds one
// descriptor for each level and fails at the limit.
//
// Nobody else may change what is above the tree; who changes the tree itself only delays its end.
package removal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Tree removes a directory that nobody uses any more, or stops between two files with ctx's error; a later call goes on. One
// that is not there is removed. What can be removed is, whatever cannot: a mount point, a file that may not be changed. Links
// are not followed, mounts not entered.
func Tree(ctx context.Context, dir string) error {
	for {
		switch err := unix.Rmdir(dir); {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOTDIR): // nothing of ours
			return os.Remove(dir)
		case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST):
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		top, err := os.Open(dir) //nolint:gosec // our own path
		if err != nil {
			return err
		}
		gone, err := clearDir(ctx, top, func(name string) (bool, error) { return raze(ctx, top, name) })
		_ = top.Close() // read only
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if !gone { // what no round removes, no further one does
			return errors.Join(err, &os.PathError{Op: "rmdir", Path: dir, Err: unix.ENOTEMPTY})
		}
	}
}

// raze empties one directory below top, and then removes it.
func raze(ctx context.Context, top *os.File, name string) (gone bool, err error) {
	fd, err := unix.Openat(int(top.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "openat", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close() //nolint:errcheck // read only
	gone, err = clearDir(ctx, d, func(below string) (bool, error) {
		if err := unix.Renameat(fd, below, int(top.Fd()), fresh()); err != nil {
			return false, &os.PathError{Op: "renameat", Path: filepath.Join(name, below), Err: err}
		}
		return true, nil
	})
	if err == nil && ctx.Err() == nil {
		err = unix.Unlinkat(int(top.Fd()), name, unix.AT_REMOVEDIR)
	}
	return gone || err == nil, err
}

// clearDir removes what can be removed of a directory's entries by one call each; full sees to a directory that is not
// empty. It says whether anything is gone, and the first error; ctx ends it early.
func clearDir(ctx context.Context, d *os.File, full func(name string) (bool, error)) (gone bool, first error) {
	const batch = 1024
	for {
		names, err := d.Readdirnames(batch)
		for _, name := range names {
			if ctx.Err() != nil {
				return gone, ctx.Err()
			}
			err := unix.Unlinkat(int(d.Fd()), name, 0)
			if errors.Is(err, unix.EISDIR) {
				err = unix.Unlinkat(int(d.Fd()), name, unix.AT_REMOVEDIR)
			}
			one := err == nil
			switch {
			case errors.Is(err, unix.ENOENT):
				err = nil
			case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
				one, err = full(name)
			}
			gone = gone || one
			if err != nil && first == nil {
				first = &os.PathError{Op: "remove", Path: filepath.Join(d.Name(), name), Err: err}
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 {
			return gone, first
		}
		if err != nil {
			return gone, errors.Join(first, err)
		}
	}
}

// fresh is a name that nobody has.
func fresh() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	return hex.EncodeToString(raw[:])
}
