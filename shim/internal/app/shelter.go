package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sheltered marks the environment of a shim whose program is sheltered.
const sheltered = "BERTH_SHIM_SHELTERED"

// shelter lets the process run its program from a detached, read-only mount of its directory, by executing it once more.
//
// A container can make its own process execute the shim: "#!/proc/self/exe" as the first line of a script, or as the
// command, is followed by the kernel in a child of ours that is in the container already (CVE-2019-5736). What runs
// then does nothing, but whoever may look at it in the container has the file behind /proc/PID/exe, opened by a path
// that no mount namespace hides. That it cannot be written while a shim runs from it (ETXTBSY) is luck, and over when
// the last one is killed; that the mount behind it is read-only is not. Two Go starts instead of one, for each shim.
func shelter() error {
	if os.Getenv(sheltered) != "" {
		var fs unix.Statfs_t
		if err := unix.Statfs("/proc/self/exe", &fs); err != nil {
			return fmt.Errorf("look at the own program: %w", err)
		}
		if fs.Flags&unix.ST_RDONLY == 0 {
			return errors.New("the own program is on a mount that can be written, though " + sheltered + " is set")
		}
		return os.Unsetenv(sheltered)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the own program: %w", err)
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // an upgrade came in between: its file is as good
	dir, err := unix.OpenTree(unix.AT_FDCWD, filepath.Dir(exe), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of %s: %w", filepath.Dir(exe), err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(dir, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make the mount of %s read-only: %w", filepath.Dir(exe), err)
	}
	again := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(exe)) // its base is the process's name
	return fmt.Errorf("run %s again: %w", exe, unix.Exec(again, os.Args, append(os.Environ(), sheltered+"=1")))
}
