package blockfs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/volume"
)

// MountAlone is Prepare and Mount of a device that stays when nobody uses it, and so may be in use elsewhere: repairing
// what somebody has mounted would be its end. One that is in use is FailedPrecondition.
func MountAlone(ctx context.Context, v volume.Spec, device string, readOnly bool) (*os.File, error) {
	if err := blockdev.Alone(device); err != nil { // the programs that repair it want it for themselves as well
		return nil, err
	}
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(Prepare(ctx, v, dev, readOnly), dev.Close()); err != nil {
		return nil, err
	}
	return Mount(v, device, readOnly)
}

// Holds says whether what is at a point is a device: a mount of its file system, its node, or that of a loop device
// which a reader has in front of it.
func Holds(number uint64, device string, p mount.Point) (bool, error) {
	if p.Dev == number || p.Rdev == number {
		return true, nil
	}
	all, err := loopdev.Over(device)
	for _, dev := range all {
		var st unix.Stat_t
		if serr := unix.Stat(dev, &st); serr == nil && st.Rdev == p.Rdev {
			return true, nil
		}
	}
	return false, err
}
