package blockfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// The ioctls of freezing: linux/fs.h.
const (
	fiFreeze = 0xc0045877 // _IOWR('X', 119, int)
	fiThaw   = 0xc0045878 // _IOWR('X', 120, int)
)

// Freeze makes what is mounted of all these volumes whole on their devices, and keeps it so until thaw is called, which
// the caller must do whatever Freeze says.
func Freeze(all []volume.SnapshotSpec) (thaw func() error, err error) {
	var frozen []*os.File
	thaw = func() (err error) {
		for _, f := range frozen {
			err = errors.Join(err, ioctl(f, fiThaw), f.Close())
		}
		return err
	}
	for _, s := range all {
		if s.Mounted == nil {
			continue
		}
		f, err := openDir(s.Mounted)
		if err != nil {
			return thaw, err
		}
		if err := ioctl(f, fiFreeze); err != nil {
			return thaw, errors.Join(errs.Aborted.Errorf("volume %s cannot be frozen: %w", s.Volume.ID, err), f.Close())
		}
		frozen = append(frozen, f)
	}
	return thaw, nil
}

// Thaw thaws what is mounted at root; what is not frozen is fine.
func Thaw(root *os.File) error {
	f, err := openDir(root)
	if err != nil {
		return err
	}
	defer f.Close()                                                          //nolint:errcheck // only ioctls
	if err := ioctl(f, fiThaw); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: is not frozen
		return err
	}
	return nil
}

func ioctl(f *os.File, cmd uint) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(cmd), 0); errno != 0 {
		return &os.PathError{Op: "ioctl", Path: f.Name(), Err: errno}
	}
	return nil
}
