// Package blockdev reads, erases and copies block devices by their open descriptors (linux/fs.h, BLK* ioctls). It knows
// nothing of what is on them but whether it is zero, and nothing of who they belong to.
package blockdev

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Slice is how many bytes are erased or copied at once, between two looks at the context.
const Slice = 64 << 20

// Edge is how many bytes at the beginning and at the end of a device hold what says what it is: superblocks, partition
// tables, labels. The farthest from an end that is known are ZFS's labels (512 KiB); Linux RAID 0.90 has 128 KiB.
const Edge = 1 << 20

// Size is a device's size in bytes.
func Size(dev *os.File) (int64, error) {
	var n uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0, &os.PathError{Op: "BLKGETSIZE64", Path: dev.Name(), Err: errno}
	}
	return int64(n), nil //nolint:gosec // sizes fit
}

// Number is a device's number, as stat(2) has it in st_rdev; what is no block device is FailedPrecondition.
func Number(dev *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "fstat", Path: dev.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, errs.FailedPrecondition.Errorf("%s is no block device", dev.Name())
	}
	return st.Rdev, nil
}

// Exclusive opens a device that nobody has mounted, holds or uses for another device (O_EXCL, open(2)); one that is in
// use is FailedPrecondition. The caller holds it so until it closes it.
func Exclusive(path string) (*os.File, error) {
	syscall.ForkLock.RLock() // what we have just closed, a child of ours that is about to exec still has open
	defer syscall.ForkLock.RUnlock()
	return exclusive(path)
}

// Alone says FailedPrecondition if Exclusive would. It holds the device for a moment in which no child is born, so that
// who is started next may have it for itself.
func Alone(path string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := exclusive(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func exclusive(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, errs.FailedPrecondition.Errorf("%s is in use: it is mounted, or another device is made of it: %w", path, err)
	}
	return f, err
}

// Zero makes the bytes from at to end zero on the disk itself: by the device's own command for it, else by writing
// (BLKZEROOUT, Linux 3.7). What the kernel had cached of them is dropped. It calls done after every slice, if that is
// not nil, with where it is.
func Zero(ctx context.Context, dev *os.File, at, end int64, done func(at int64) error) error {
	for at < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(Slice, end-at)
		arg := [2]uint64{uint64(at), uint64(n)} //nolint:gosec // sizes fit
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			return &os.PathError{Op: "BLKZEROOUT", Path: dev.Name(), Err: errno}
		}
		at += n
		if done != nil {
			if err := done(at); err != nil {
				return err
			}
		}
	}
	return nil
}

// ZeroEdges makes zero what says what a device of size bytes is.
func ZeroEdges(ctx context.Context, dev *os.File, size int64) error {
	return errors.Join(Zero(ctx, dev, 0, min(Edge, size), nil), Zero(ctx, dev, max(0, size-Edge), size, nil))
}

// Blank says whether nothing but zero is at the edges of a device.
func Blank(dev *os.File, size int64) (bool, error) {
	for _, at := range []int64{0, max(0, size-Edge)} {
		b := make([]byte, min(Edge, size))
		if _, err := dev.ReadAt(b, at); err != nil {
			return false, &os.PathError{Op: "read", Path: dev.Name(), Err: err}
		}
		if len(bytes.Trim(b, "\x00")) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// Copy makes the first size bytes of a device those of another. Runs of zero are not written but made zero, which most
// devices do without moving data. It ends synced.
func Copy(ctx context.Context, to, from *os.File, size int64) error {
	const chunk = 1 << 20
	buf, zero := make([]byte, chunk), make([]byte, chunk)
	blank := int64(-1) // where the run of zero begins that is not made yet
	flush := func(at int64) error {
		if blank < 0 {
			return nil
		}
		start := blank
		blank = -1
		return Zero(ctx, to, start, at, nil)
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(chunk, size-at)]
		if _, err := io.ReadFull(io.NewSectionReader(from, at, int64(len(b))), b); err != nil {
			return &os.PathError{Op: "read", Path: from.Name(), Err: err}
		}
		if bytes.Equal(b, zero[:len(b)]) {
			if blank < 0 {
				blank = at
			}
		} else {
			if err := flush(at); err != nil {
				return err
			}
			if _, err := to.WriteAt(b, at); err != nil {
				return err
			}
		}
		at += int64(len(b))
	}
	return errors.Join(flush(size), to.Sync())
}
