// Package devmapper asks the kernel's device-mapper about one device by its name (linux/dm-ioctl.h, version 4, Linux
// 2.6): whether it is there, its number, and how often it is open. It makes and changes nothing: that is LVM's to do.
package devmapper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is one that the kernel has.
type Device struct {
	Number uint64 // as stat(2) has it in st_rdev
	UUID   string // "LVM-" and the group's and the volume's of a logical volume
	Open   int    // descriptors, mounts and devices made of it, in whatever namespace
}

// Path is the node that the kernel itself makes for the device (devtmpfs), whatever udev does.
func (d Device) Path() string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(d.Number)) }

// struct dm_ioctl: version (3 × __u32), data_size, data_start, target_count, open_count (__s32), flags, event_nr,
// padding, dev (__u64), name (128 bytes), uuid (129 bytes), data (7 bytes).
const (
	structSize         = 312
	versionMajor       = 4
	dataSizeAt         = 12
	openAt, devAt      = 24, 40
	nameAt, uuidAt     = 48, 176
	nameSize, uuidSize = 128, 129
	deviceStatus       = 0xc138fd07 // DM_DEV_STATUS: _IOWR(0xfd, 7, struct dm_ioctl)
)

// Find looks for a device by name; one that is not there is os.ErrNotExist.
func Find(name string) (Device, error) {
	if len(name) >= nameSize {
		return Device{}, &os.PathError{Op: "DM_DEV_STATUS", Path: name, Err: unix.ENAMETOOLONG}
	}
	ctl, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil { // no device-mapper: no device
		return Device{}, err
	}
	defer ctl.Close() //nolint:errcheck // only an ioctl
	var b [structSize]byte
	binary.NativeEndian.PutUint32(b[0:], versionMajor)
	binary.NativeEndian.PutUint32(b[dataSizeAt:], structSize)
	copy(b[nameAt:], name)
	syscall.ForkLock.RLock() // what we have just closed, a child of ours that is about to exec still has open
	defer syscall.ForkLock.RUnlock()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), deviceStatus, uintptr(unsafe.Pointer(&b)))
	if errors.Is(errno, unix.ENXIO) {
		return Device{}, &os.PathError{Op: "DM_DEV_STATUS", Path: name, Err: os.ErrNotExist}
	}
	if errno != 0 {
		return Device{}, &os.PathError{Op: "DM_DEV_STATUS", Path: name, Err: errno}
	}
	dev := binary.NativeEndian.Uint64(b[devAt:]) // huge_encode_dev: minor 0xff | major << 8 | minor above
	major, minor := uint32(dev>>8)&0xfff, uint32(dev&0xff)|uint32(dev>>12)&^0xff
	uuid, _, _ := strings.Cut(string(b[uuidAt:uuidAt+uuidSize]), "\x00")
	return Device{Number: unix.Mkdev(major, minor), UUID: uuid, Open: int(int32(binary.NativeEndian.Uint32(b[openAt:])))}, nil //nolint:gosec // __s32
}
