package datapath

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cni/internal/overlay"
)

// Requests of SIOCETHTOOL (linux/ethtool.h) for all kinds of transmit checksums at once. Without them the kernel computes
// checksums before a packet is wrapped, and hands no packet to the device that is larger than its MTU.
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

// applyChecksums turns offloading off where the plan wants it so. It never turns it on: where an operator has turned it
// off by hand, there was a reason.
func (k *Kernel) applyChecksums(plan *overlay.Plan) (changes []string, err error) {
	for _, d := range plan.Devices {
		if !d.SoftChecksums {
			continue
		}
		on, err := k.txChecksum(d.Name, ethtoolGetTxChecksum, 0)
		if err == nil && on != 0 {
			_, err = k.txChecksum(d.Name, ethtoolSetTxChecksum, 0)
			changes = append(changes, "link "+d.Name+" checksums in software")
		}
		if err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// txChecksum does one request and returns its value.
func (k *Kernel) txChecksum(dev string, request, value uint32) (uint32, error) {
	if len(dev) >= unix.IFNAMSIZ {
		return 0, fmt.Errorf("link name %q is too long", dev)
	}
	type ethtoolValue struct{ cmd, data uint32 }
	v := &ethtoolValue{request, value}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}
	copy(ifr.name[:], dev)
	ifr.data = unsafe.Pointer(v)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.ioctl), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return 0, fmt.Errorf("link %s: checksum offload: %w", dev, errno)
	}
	return v.data, nil
}
