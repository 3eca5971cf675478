package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// crowd is a number of mounts on the host, as the volumes of other pods are.
type crowd struct {
	dir string
	n   int
}

// newCrowd makes the directory that holds n mounts while they are there.
func newCrowd(dir string, n int) (crowd, error) { return crowd{dir, n}, os.MkdirAll(dir, 0o755) }

// come makes the mounts.
func (c crowd) come() error {
	if err := unix.Mount("crowd", c.dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	for i := range c.n - 1 { // the directory is one of them
		at := filepath.Join(c.dir, strconv.Itoa(i))
		if err := errors.Join(os.Mkdir(at, 0o755), unix.Mount(at, at, "", unix.MS_BIND, "")); err != nil {
			return err
		}
	}
	return nil
}

// leave ends them, and waits a little: the kernel frees them later.
func (c crowd) leave() error {
	err := unix.Unmount(c.dir, unix.MNT_DETACH)
	time.Sleep(50 * time.Millisecond)
	return err
}
