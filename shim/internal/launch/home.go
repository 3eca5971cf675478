package launch

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// home is where the cloning thread belongs: its v1 cgroups and its pid namespace. tasks and stops stay as they were opened; the
// rest is that thread's alone.
type home struct {
	pidns int
	tasks map[uint64]int  // by device number of the hierarchy
	stops map[uint64]bool // hierarchies that can stop their members
	// What the thread could not go back to, for want of memory: it tries again, and does not clone before. A child of a
	// thread that is astray would be born in a stranger's pid namespace, or not at all when that one has ended.
	astrayPid   bool
	astrayTasks map[int]bool
}

func openHome() (*home, error) {
	pidns, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open own pid namespace: %w", err)
	}
	h := &home{pidns: pidns, tasks: map[uint64]int{}, stops: map[uint64]bool{}, astrayTasks: map[int]bool{}}
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(cgroups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[1] == "" {
			continue
		}
		point := v1MountPoint(string(mounts), parts[1])
		if point == "" {
			continue
		}
		fd, err := unix.Open(point+parts[2]+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // an old hierarchy nobody uses; a request that does is refused below
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		h.tasks[st.Dev] = fd
		controllers := strings.Split(parts[1], ",")
		h.stops[st.Dev] = slices.Contains(controllers, "cpu") || slices.Contains(controllers, "freezer")
	}
	return h, nil
}

// split tells the tasks files that the cloning thread enters from those that its child enters by itself. In a group that has used
// up its time, or is frozen, the thread would stop, with the reaper's lock held, and every pod of this shim with it. The
// others do not stop it, and it has to be in them: the child's memory and its pid are charged where its parent is.
func (h *home) split(tasks []int) (ahead, itself []int, err error) {
	for _, fd := range tasks {
		dev, _, err := h.of(fd)
		switch {
		case err != nil:
			return nil, nil, err
		case h.stops[dev]:
			itself = append(itself, fd)
		default:
			ahead = append(ahead, fd)
		}
	}
	return ahead, itself, nil
}

// v1MountPoint finds where the v1 hierarchy with the given controllers ("cpu,cpuacct", "name=systemd") is mounted.
func v1MountPoint(mountinfo, controllers string) string {
	want := strings.Split(controllers, ",")
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - cgroup ")
		if !ok {
			continue
		}
		fields, tail := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(tail) < 2 || fields[3] != "/" {
			continue
		}
		options := "," + tail[1] + ","
		all := true
		for _, c := range want {
			all = all && strings.Contains(options, ","+c+",")
		}
		if all {
			return fields[4]
		}
	}
	return ""
}

// enter moves the calling thread into the cgroups of tasks, which are split's: it can come back from them.
func (h *home) enter(tasks []int) error {
	for _, fd := range tasks {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return fmt.Errorf("enter a v1 cgroup: %w", err)
		}
	}
	return nil
}

// leave moves the calling thread back, from a pid namespace as well.
func (h *home) leave(tasks []int) {
	for _, fd := range tasks {
		if _, own, err := h.of(fd); err == nil {
			h.astrayTasks[own] = true
		}
	}
	_ = h.settle() // or soon: see Run
}

// astray says that the thread is not all home.
func (h *home) astray() bool { return h.astrayPid || len(h.astrayTasks) > 0 }

// settle takes the thread to where it could not go back to. An error says that it still is not all home.
func (h *home) settle() error {
	var all []error
	if h.astrayPid {
		if err := unix.Setns(h.pidns, unix.CLONE_NEWPID); err != nil {
			all = append(all, fmt.Errorf("go back to the own pid namespace: %w", err))
		} else {
			h.astrayPid = false
		}
	}
	for own := range h.astrayTasks {
		if _, err := unix.Write(own, []byte("0")); err != nil {
			all = append(all, fmt.Errorf("go back to the own v1 cgroup: %w", err))
			continue
		}
		delete(h.astrayTasks, own)
	}
	return errors.Join(all...)
}

// of finds the hierarchy of a tasks file, and its own tasks file there.
func (h *home) of(fd int) (dev uint64, own int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, -1, err
	}
	own, ok := h.tasks[st.Dev]
	if !ok {
		return 0, -1, errors.New("a v1 cgroup hierarchy that the shim is not a member of")
	}
	return st.Dev, own, nil
}

// enterPidNS makes a pid namespace that of the thread's next children; leave undoes it.
func (h *home) enterPidNS(fd int) error {
	err := unix.Setns(fd, unix.CLONE_NEWPID)
	h.astrayPid = err == nil
	return err
}

// enterMinimal gives the calling thread a mount namespace with one read-only tmpfs in it, which has the empty
// directories proc, sys and root.
func enterMinimal() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// mounted over /proc only because every host has that directory; it becomes the root at once
	if err := unix.Mount("berth", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,nr_inodes=16,mode=0755"); err != nil {
		return err
	}
	if err := unix.Chdir("/proc"); err != nil {
		return err
	}
	for _, d := range [...]string{"proc", "sys", "root"} {
		if err := unix.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
