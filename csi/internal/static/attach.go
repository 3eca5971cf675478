package static

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/csi/internal/blockdev"
	"github.com/berth-project/berth/csi/internal/blockfs"
	"github.com/berth-project/berth/csi/internal/loopdev"
	"github.com/berth-project/berth/csi/internal/mount"
	"github.com/berth-project/berth/csi/internal/pool"
	"github.com/berth-project/berth/csi/internal/volume"
	"github.com/berth-project/berth/proto/errs"
)

// Mount implements volume.Attacher.
func (b *Backend) Mount(ctx context.Context, v volume.Spec, readOnly bool) (*os.File, error) {
	k, err := b.of(v.ID)
	if err != nil {
		return nil, err
	}
	return blockfs.MountAlone(ctx, v, k.node, readOnly)
}

// Device implements volume.Attacher. A reader gets a loop device that refuses writes in front of the device.
func (b *Backend) Device(_ context.Context, v volume.Spec, readOnly bool) (string, error) {
	k, err := b.of(v.ID)
	if err != nil || !readOnly {
		return k.node, err
	}
	return loopdev.ReadOnlyFor(k.node)
}

// Holds implements volume.Attacher.
func (b *Backend) Holds(_ context.Context, v volume.Spec, p mount.Point) (bool, error) {
	k, err := b.of(v.ID)
	if err != nil {
		return false, err
	}
	return blockfs.Holds(k.number, k.node, p)
}

// Release implements volume.Attacher. The device stays, so that nobody uses it must be looked up: it is not mounted
// anywhere, no process has it open, and its node is in no mount namespace but at its own place.
func (b *Backend) Release(_ context.Context, v volume.Spec) error {
	d, err := b.pool.Dir()
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // O_PATH
	r, there, err := read(d, pool.Volumes+"/"+v.ID)
	if err != nil || !there {
		return err
	}
	k, err := look(r.Device)
	if err != nil || !r.is(k) {
		return nil // the device has gone, and all use of it with it
	}
	if err := loopdev.ReleaseOver(k.node); err != nil {
		return err
	}
	if err := blockdev.Alone(k.node); err != nil {
		return errs.FailedPrecondition.Errorf("volume %s is still in use: %w", v.ID, err)
	}
	if !v.Block {
		return nil
	}
	if user := openBy(k.number); user != "" {
		return errs.FailedPrecondition.Errorf("volume %s is still in use: process %s has %s open", v.ID, user, k.node)
	}
	point, err := nodeElsewhere(k.node)
	if err == nil && point != "" {
		err = errs.FailedPrecondition.Errorf("volume %s is still in use: its device is at %s, here or in another mount namespace", v.ID, point)
	}
	return err
}

// openBy is the id of a process that has a device open; "": none has.
func openBy(number uint64) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "" // the pattern is good
	}
	for _, fd := range fds {
		var st unix.Statx_t // without asking a server of files that may not answer
		if unix.Statx(unix.AT_FDCWD, fd, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) == nil &&
			st.Mode&unix.S_IFMT == unix.S_IFBLK && unix.Mkdev(st.Rdev_major, st.Rdev_minor) == number {
			return strings.Split(fd, "/")[2]
		}
	}
	return ""
}

// nodeElsewhere finds a mount of a device's node itself, which is how a pod gets a raw volume.
func nodeElsewhere(node string) (point string, err error) {
	all, err := mount.Everywhere()
	for _, m := range all {
		if m.FSType == "devtmpfs" && m.Root == strings.TrimPrefix(node, "/dev") {
			return m.Point, err
		}
	}
	return "", err
}

// Grow implements volume.Attacher.
func (b *Backend) Grow(_ context.Context, v volume.Spec, root *os.File) error {
	if root == nil {
		return nil
	}
	k, err := b.of(v.ID)
	if err != nil {
		return err
	}
	return blockfs.Grow(v, root, k.node)
}

// Usage implements volume.Attacher.
func (b *Backend) Usage(_ context.Context, _ volume.Spec, root *os.File) (volume.Usage, error) {
	return blockfs.Usage(root)
}
