package executor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// host is what compiling needs to know of the machine and of this process; read once.
type host struct {
	proc   int // O_PATH descriptor of a verified procfs root
	null   int // detached read-only mount of the verified /dev/null: nothing can be changed through it
	nullRW int // the null device, opened through that mount
	kcore  bool
	// apparmor tells whether AppArmor is active.
	apparmor bool
	lastCap  int
	have     uint64 // own permitted capabilities
	hard     map[int]uint64
	ignored  []int // signals that this process ignores and a child would inherit as ignored
	cgroups  []hierarchy
	unified  string // mount point of cgroup2, if it is the only hierarchy
}

// hierarchy is a mounted v1 cgroup hierarchy.
type hierarchy struct {
	name    string // base name of the mount point
	path    string
	options []string // controllers, or name=...
}

func openHost() (*host, error) {
	h := &host{hard: map[int]uint64{}}
	var err error
	if h.proc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(h.proc, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return nil, errs.FailedPrecondition.Errorf("/proc is not a procfs (%v)", err)
	}
	if err := h.openNull(); err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	_, err = os.Stat("/proc/kcore")
	h.kcore = err == nil
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	h.apparmor = err == nil && strings.HasPrefix(string(enabled), "Y")
	for _, res := range rlimitNumbers() {
		var lim unix.Rlimit
		if err := unix.Getrlimit(res, &lim); err == nil {
			h.hard[res] = lim.Max
		}
	}
	if err := h.readStatus(); err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	h.cgroups, h.unified = parseCgroupMounts(string(mounts))
	return h, nil
}

// openNull opens the null device for processes. What they get comes through a read-only mount, because root in a
// container may fchmod(2) its descriptors, and mode and owner of the host's node are not its to change.
func (h *host) openNull() (err error) {
	if h.null, err = unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(h.null, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return errs.FailedPrecondition.Errorf("/dev/null is not the null device")
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(h.null, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	h.nullRW, err = unix.Open("/proc/self/fd/"+strconv.Itoa(h.null), unix.O_RDWR|unix.O_CLOEXEC, 0)
	return err
}

func (h *host) readStatus() error {
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return err
	}
	if h.lastCap, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch key {
		case "CapPrm":
			if h.have, err = strconv.ParseUint(value, 16, 64); err != nil {
				return err
			}
		case "SigIgn":
			mask, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return err
			}
			for sig := 1; sig <= 64; sig++ {
				if mask&(1<<(sig-1)) != 0 {
					h.ignored = append(h.ignored, sig)
				}
			}
		}
	}
	return nil
}

// parseCgroupMounts lists the v1 hierarchies below /sys/fs/cgroup; without any, the mount point of cgroup2.
func parseCgroupMounts(mountinfo string) (v1 []hierarchy, unified string) {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch tail[0] {
		case "cgroup2":
			unified = fields[4]
		case "cgroup":
			h := hierarchy{name: strings.TrimPrefix(fields[4], "/sys/fs/cgroup/"), path: fields[4]}
			for _, o := range strings.Split(tail[2], ",") {
				if o != "rw" && o != "ro" && o != "xattr" && !strings.HasPrefix(o, "release_agent=") {
					h.options = append(h.options, o)
				}
			}
			v1 = append(v1, h)
		}
	}
	if len(v1) > 0 {
		return v1, ""
	}
	return nil, unified
}
