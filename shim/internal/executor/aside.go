package executor

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// errNoLayerFd says that the kernel takes an overlay's layers by path only (Linux before 6.13).
var errNoLayerFd = errors.New("the kernel takes no overlay layer by descriptor")

// layerAside gives an idmapped layer to an overlay by its path: the mount is attached over the layer's own directory, in
// the mount namespace of aside, which nobody else sees and which ends with it.
func (in *inputs) layerAside(fs int, key, dir string) error {
	fd, err := in.mappedLayer(dir)
	if err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the mapped layer: %w", err)
	}
	return unix.FsconfigSetString(fs, key, dir)
}

// aside runs f on a thread with a private copy of the mount namespace. The thread ends with f. It costs what the copy
// costs, so only what older kernels cannot do otherwise is done here.
func aside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread is what /proc/self shows: it must stay where it is
			defer runtime.UnlockOSThread()
			done <- aside(f)
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			done <- fmt.Errorf("private mount namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
