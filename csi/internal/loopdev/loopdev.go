// Package loopdev attaches files to loop devices (loop(4), LOOP_CONFIGURE of Linux 5.8) and detaches them so that
// "detached" is true.
//
// LOOP_CLR_FD of a device in use says yes and only marks it, so this package does not use it. A device for a file
// system is attached with autoclear: it ends when its last user, in whatever mount namespace, ends. One for raw block
// is kept until [Release] marks it autoclear, and Release then says whether it really went.
package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// BlockSize is the logical block size of every device, in bytes: that of the page cache and of the file systems below,
// so that direct I/O needs no read-modify-write.
const BlockSize = 4096

// Options of an attachment.
type Options struct {
	ReadOnly  bool
	AutoClear bool // end with the last user
}

// Attach gives file a device, by direct I/O where the file's file system allows it, and returns it open. The caller
// holds the device until it closes it. file must be open for writing unless ReadOnly is set.
func Attach(file *os.File, o Options) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer ctl.Close()                                                //nolint:errcheck // only ioctls
	conf := &unix.LoopConfig{Fd: uint32(file.Fd()), Size: BlockSize} //nolint:gosec // descriptors are small
	conf.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if o.ReadOnly {
		conf.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.AutoClear {
		conf.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	copy(conf.Info.File_name[:len(conf.Info.File_name)-1], filepath.Base(file.Name()))
	for range 1000 { // another process may take the number that was free
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("the kernel has loop%d but /dev has not: is /dev a devtmpfs? %w", n, err)
		}
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), conf)
		if err == nil {
			return dev, nil
		}
		if cerr := dev.Close(); cerr != nil || !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop%d: %w", n, errors.Join(err, cerr))
		}
	}
	return nil, errs.Aborted.Errorf("loop devices: every free one was taken by others; try again")
}

// Find returns the paths of the devices whose file is the open file, whatever it is called by now.
func Find(file *os.File) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	// Names are only a filter: ours contain the volume's id, so other people's devices are not even opened.
	name := strings.TrimSuffix(filepath.Base(file.Name()), filepath.Ext(file.Name()))
	var found []string
	for _, d := range dirs {
		if b, err := os.ReadFile(d); err != nil || !strings.Contains(string(b), name) {
			continue // detached meanwhile, or not ours
		}
		path := "/dev/" + strings.Split(d, "/")[3]
		dev, err := os.OpenFile(path, os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		cerr := dev.Close()
		if err == nil && info.Inode == st.Ino && sameDev(info.Device, st.Dev) {
			found = append(found, path)
		}
		if err != nil && !errors.Is(err, unix.ENXIO) || cerr != nil {
			return nil, fmt.Errorf("%s: %w", path, errors.Join(err, cerr))
		}
	}
	return found, nil
}

// sameDev compares a device number as LOOP_GET_STATUS64 gives it (huge_encode_dev, from Linux 5.8 as new_encode_dev
// did) with one of stat(2).
func sameDev(loop, stat uint64) bool {
	return loop == stat || loop == uint64(unix.Major(stat))<<8|uint64(unix.Minor(stat)&0xff)|uint64(unix.Minor(stat)&^0xff)<<12
}

// Release marks the devices of a file autoclear and says FailedPrecondition if one is still there afterwards, which
// means that somebody has it open or mounted.
func Release(file *os.File) error {
	all, err := Find(file)
	if err != nil {
		return err
	}
	for _, path := range all {
		dev, err := os.OpenFile(path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil {
			info.Flags |= unix.LO_FLAGS_AUTOCLEAR
			err = unix.IoctlLoopSetStatus64(int(dev.Fd()), info)
		}
		if err := errors.Join(err, dev.Close()); err != nil && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	left, err := Find(file)
	if err == nil && len(left) > 0 {
		err = errs.FailedPrecondition.Errorf("%s is still in use through %s: end the process or the mount that holds it", filepath.Base(file.Name()), strings.Join(left, ", "))
	}
	return err
}

// Grow tells a device that its file has another size.
func Grow(path string) error {
	dev, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	_, err = unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY)
	return errors.Join(err, dev.Close())
}

// Size is a device's size in bytes.
func Size(path string) (int64, error) {
	dev, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	var n uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		err = fmt.Errorf("%s: BLKGETSIZE64: %w", path, errno)
	}
	return int64(n), errors.Join(err, dev.Close()) //nolint:gosec // sizes fit
}

// ReadOnly says whether a device refuses writes.
func ReadOnly(path string) (bool, error) {
	b, err := os.ReadFile("/sys/block/" + filepath.Base(path) + "/ro")
	return strings.TrimSpace(string(b)) == "1", err
}

// SetReadAhead sets how many bytes the kernel reads ahead on a device (BLKRASET, in sectors of 512 bytes).
func SetReadAhead(path string, bytes int64) error {
	return set(path, "BLKRASET", unix.BLKRASET, int(bytes/512))
}

// SetDirectIO says whether a device goes round the page cache of the file system that its file is in
// (LOOP_SET_DIRECT_IO). Where that file system cannot, asking for it is no error: it is a preference.
func SetDirectIO(path string, on bool) error {
	n := 0
	if on {
		n = 1
	}
	err := set(path, "LOOP_SET_DIRECT_IO", unix.LOOP_SET_DIRECT_IO, n)
	if on && errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

func set(path, name string, cmd uint, value int) error {
	dev, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), cmd, value); err != nil {
		return errors.Join(fmt.Errorf("%s: %s: %w", path, name, err), dev.Close())
	}
	return dev.Close()
}
