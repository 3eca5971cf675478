package mount

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/nearest"
	"github.com/berth-project/berth/proto/errs"
)

// Safe are the attributes of every mount of a volume.
const Safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// flags are the mount flags that a StorageClass or a PersistentVolume may ask for. Nothing that reaches beyond the
// mount itself is among them: no context=, no uid=, no suid, no dev, no bind, no loop.
var flags = map[string]uint64{ // read only
	"ro": unix.MOUNT_ATTR_RDONLY, "rw": 0, "nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV,
	"noexec": unix.MOUNT_ATTR_NOEXEC, "exec": 0, "noatime": unix.MOUNT_ATTR_NOATIME, "nodiratime": unix.MOUNT_ATTR_NODIRATIME,
	"relatime": 0, "strictatime": unix.MOUNT_ATTR_STRICTATIME, "defaults": 0,
}

// Flags turns mount flags into attributes; one that is not allowed is InvalidArgument.
func Flags(names []string) (uint64, error) {
	var set uint64
	for _, n := range names {
		bit, ok := flags[n]
		if !ok {
			known := slices.Sorted(maps.Keys(flags))
			return 0, errs.InvalidArgument.Errorf("mount_flags: %q is not allowed, nearest is %q; allowed are %v", n, nearest.To(n, known), known)
		}
		set |= bit
	}
	if set&unix.MOUNT_ATTR_NOATIME != 0 && set&unix.MOUNT_ATTR_STRICTATIME != 0 {
		return 0, errs.InvalidArgument.Errorf("mount_flags: noatime and strictatime exclude each other")
	}
	return set, nil
}
