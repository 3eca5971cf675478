// Package rootfs opens the merged view of image layers, detached from every mount table, for the daemon to read
// from: /etc/passwd of an image, or an image's content as a volume. What is read through it is untrusted.
package rootfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/inroot"
)

// Open merges layers (directories, topmost first) read-only into a detached overlay mount (fsopen, Linux 5.2;
// lowerdir+, Linux 6.5) and returns it as a root to read in.
func Open(lower []string) (*inroot.Root, error) {
	switch len(lower) {
	case 0:
		return nil, errors.New("an image without layers has no files")
	case 1:
		return inroot.Open(lower[0])
	}
	fd, err := mountOverlay(lower)
	if err != nil {
		return nil, fmt.Errorf("overlay of %d layers: %w", len(lower), err)
	}
	return inroot.FromFile(os.NewFile(uintptr(fd), "overlay")), nil
}

// Mount attaches the merged, read-only view of layers at dir. Unmount undoes it.
func Mount(lower []string, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if len(lower) == 1 {
		fd, err := unix.OpenTree(unix.AT_FDCWD, lower[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("clone %s: %w", lower[0], err)
		}
		defer unix.Close(fd) //nolint:errcheck // attached or not, the descriptor is no longer needed
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("read-only: %w", err)
		}
		return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	fd, err := mountOverlay(lower)
	if err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(lower), err)
	}
	defer unix.Close(fd) //nolint:errcheck // as above
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// Unmount removes what Mount made, the directory included. Nothing there is fine.
func Unmount(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func mountOverlay(lower []string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs) //nolint:errcheck // the mount holds what it needs
	for _, l := range lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", l); err != nil {
			return -1, fmt.Errorf("lowerdir %s: %w", l, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}
