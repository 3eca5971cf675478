package executor

import (
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/plan"
)

// makeEarlyMounts makes the proc and sysfs mounts, detached, while the old root is still there: in a user
// namespace the kernel wants to see others of their kind.
func (c *compiler) makeEarlyMounts() error {
	for i := range c.spec.Mounts {
		m, src := &c.spec.Mounts[i], &c.in.sources[i]
		if src.opts.bind || src.fd >= 0 || (m.Type != "proc" && m.Type != "sysfs") {
			continue
		}
		c.made[i] = c.newMount("mount "+m.Type+" on "+m.Destination, m.Type, m.Source, src.opts)
	}
	return nil
}

// newMount makes a detached mount of a new file system.
func (c *compiler) newMount(what, fstype, src string, o *mountOptions) plan.Slot {
	fs := c.Open(plan.Fsopen(what, fstype))
	if src != "" && src != "none" {
		c.Add(plan.FsString(what, plan.R(fs), "source", src, false))
	}
	for _, opt := range o.data {
		key, value, has := strings.Cut(opt, "=")
		c.Add(plan.FsString(what+": option "+opt, plan.R(fs), key, value, !has))
	}
	c.Add(plan.FsCreate(what, plan.R(fs)))
	m := c.Open(plan.Fsmount(what, plan.R(fs), int(o.set|o.recSet))) //nolint:gosec // small flags
	c.Add(plan.Close(plan.R(fs)))
	return m
}

// pivot makes the rootfs the root of the mount namespace, and drops the old one.
func (c *compiler) pivot() {
	c.Add(
		plan.Call("attach the rootfs", unix.SYS_MOVE_MOUNT, c.root, plan.S(""), plan.I(unix.AT_FDCWD), plan.S("/root"), plan.I(unix.MOVE_MOUNT_F_EMPTY_PATH)),
		plan.Call("enter the rootfs", unix.SYS_FCHDIR, c.root),
		plan.Call("pivot_root", unix.SYS_PIVOT_ROOT, plan.S("."), plan.S(".")),
		plan.Call("detach the old root", unix.SYS_UMOUNT2, plan.S("."), plan.I(unix.MNT_DETACH)),
		plan.Call("enter the new root", unix.SYS_CHDIR, plan.S("/")),
	)
	propagation, rec := uint64(0), false
	switch c.spec.Linux.RootfsPropagation {
	case "shared", "rshared":
		propagation = unix.MS_SHARED
	case "slave", "rslave":
		propagation = unix.MS_SLAVE
	case "unbindable", "runbindable":
		propagation = unix.MS_UNBINDABLE
	}
	rec = strings.HasPrefix(c.spec.Linux.RootfsPropagation, "r")
	c.private = propagation != unix.MS_SHARED
	if propagation != 0 {
		c.Add(plan.MountSetattr("set the propagation of the rootfs", c.root, rec, unix.MountAttr{Propagation: propagation}))
	}
}

// mount attaches mount i of the spec.
func (c *compiler) mount(i int) error {
	m, src := &c.spec.Mounts[i], &c.in.sources[i]
	dest := path.Clean("/" + m.Destination)
	what := "mount " + m.Type + " on " + dest
	if src.opts.bind {
		what = "bind " + m.Source + " on " + dest
	}
	if err := checkDestination(dest, m.Type); err != nil {
		return err
	}
	resolve := uint64(inside)
	if dest == "/proc" || dest == "/sys" {
		resolve = real
	}
	switch {
	case src.fd >= 0:
		target := c.target(what, dest, src.dir, resolve)
		c.attach(what, plan.F(src.fd, "mount "+m.Source), target, src.opts)
	case m.Type == "cgroup" && c.host.unified == "":
		c.cgroupV1(what, c.target(what, dest, true, resolve), src.opts)
	default:
		fstype := m.Type
		if fstype == "cgroup" {
			fstype = "cgroup2"
		}
		mnt, ok := c.made[i]
		if !ok {
			mnt = c.newMount(what, fstype, m.Source, src.opts)
		}
		c.attach(what, plan.R(mnt), c.target(what, dest, true, resolve), src.opts)
		if fstype == "devpts" {
			c.devpts = mnt
		}
	}
	return nil
}

// attach moves the detached mount from to target and gives it its propagation: the one asked for, else private,
// whatever the rootfs has.
func (c *compiler) attach(what string, from plan.Arg, target plan.Slot, o *mountOptions) {
	c.Add(plan.MoveMount(what, from, plan.R(target)), plan.Close(plan.R(target)))
	propagation, rec := o.propagation, o.propagationRec
	if propagation == 0 {
		if c.private && !o.bind {
			return // it was made privately on a private mount
		}
		propagation, rec = unix.MS_PRIVATE, true
	}
	c.Add(plan.MountSetattr(what+": propagation", from, rec, unix.MountAttr{Propagation: propagation}))
}

// checkDestination refuses targets that would hide what the runtime itself relies on.
func checkDestination(dest, fstype string) error {
	if dest == "/" {
		return errs.InvalidArgument.Errorf("the root itself is not a mount target")
	}
	if dest == "/proc" && fstype != "proc" && fstype != "bind" {
		return errs.InvalidArgument.Errorf("only a proc can be mounted on /proc")
	}
	if !strings.HasPrefix(dest, "/proc/") {
		return nil
	}
	for _, ok := range [...]string{
		"cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "sys/kernel/ns_last_pid",
		"net/dev", "sys/crypto", "sys/crypto/fips_enabled",
	} {
		if dest == "/proc/"+ok {
			return nil
		}
	}
	return errs.InvalidArgument.Errorf("nothing is mounted inside /proc")
}

// target opens the object a mount goes on, made with its missing parents if it does not exist. Every component is
// resolved inside the rootfs at the time of the call; what is there already is used as it is.
func (c *compiler) target(what, dest string, dir bool, resolve uint64) plan.Slot {
	slot := c.Slot()
	flags := unix.O_PATH
	if dir {
		flags |= unix.O_DIRECTORY
	}
	open := plan.Openat2(what, c.root, dest, flags, 0, resolve).Into(slot)
	c.Unless(open.Passing(unix.ENOENT), append(c.create(what, dest, dir, resolve), open)...)
	return slot
}

// create are the steps that make dest, and its parents if its directory is missing.
func (c *compiler) create(what, dest string, dir bool, resolve uint64) []plan.Step {
	name := "create " + dest + " to " + what
	above, last := path.Split(dest)
	parent := c.Slot()
	open := plan.Openat2(name, c.root, path.Clean(above), unix.O_PATH|unix.O_DIRECTORY, 0, resolve).Into(parent)
	walk := c.createParents(name, path.Clean(above), parent, resolve)
	steps := []plan.Step{open}
	if len(walk) > 0 {
		steps[0] = open.Passing(unix.ENOENT)
		steps[0].Skip = len(walk) + 1
		steps = append(append(steps, walk...), open)
	}
	if dir {
		steps = append(steps, plan.Call(name, unix.SYS_MKDIRAT, plan.R(parent), plan.S(last), plan.I(0o755)).Passing(unix.EEXIST))
	} else {
		file := c.Slot()
		steps = append(steps,
			plan.Call(name, unix.SYS_OPENAT, plan.R(parent), plan.S(last),
				plan.I(unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC), plan.I(0o644)).Into(file).Passing(unix.EEXIST),
			plan.Close(plan.R(file)).Passing(unix.EBADF))
	}
	return append(steps, plan.Close(plan.R(parent)))
}

// createParents are the steps that make dir and everything above it. They use the slot parent.
func (c *compiler) createParents(name, dir string, parent plan.Slot, resolve uint64) (steps []plan.Step) {
	above := "/"
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if part == "" {
			continue
		}
		steps = append(steps,
			plan.Openat2(name, c.root, above, unix.O_PATH|unix.O_DIRECTORY, 0, resolve).Into(parent),
			plan.Call(name, unix.SYS_MKDIRAT, plan.R(parent), plan.S(part), plan.I(0o755)).Passing(unix.EEXIST),
			plan.Close(plan.R(parent)))
		above = path.Join(above, part)
	}
	return steps
}

// ensureDir opens a directory, made if it is missing.
func (c *compiler) ensureDir(what, dest string) plan.Slot {
	dest = path.Clean("/" + dest)
	if dest == "/" {
		return c.Open(plan.Openat2(what, c.root, dest, unix.O_PATH|unix.O_DIRECTORY, 0, inside))
	}
	return c.target(what, dest, true, inside)
}

// cgroupV1 mounts a tmpfs with one directory for each v1 hierarchy. Nobody but this process sees it meanwhile, so its
// directories are named below it, without a descriptor of each.
func (c *compiler) cgroupV1(what string, target plan.Slot, o *mountOptions) {
	base := *o
	base.set &^= unix.MOUNT_ATTR_RDONLY // until it is filled
	base.data = []string{"mode=755"}
	tmp := c.newMount(what, "tmpfs", "tmpfs", &base)
	c.Add(plan.MoveMount(what, plan.R(tmp), plan.R(target)), plan.Close(plan.R(target)))
	for i, h := range c.host.cgroups {
		name := what + "/" + h.name
		c.Add(plan.Call(name, unix.SYS_MKDIRAT, plan.R(tmp), plan.S(h.name), plan.I(0o755)))
		var m plan.Arg
		if c.in.fresh["cgroup"] {
			opts := *o
			opts.data = h.options
			m = plan.R(c.newMount(name, "cgroup", "cgroup", &opts))
		} else {
			m = plan.F(c.in.cgroups[i], "cgroup "+h.name)
		}
		c.Add(plan.Call(name, unix.SYS_MOVE_MOUNT, m, plan.S(""), plan.R(tmp), plan.S(h.name), plan.I(unix.MOVE_MOUNT_F_EMPTY_PATH)))
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		c.Add(plan.MountSetattr(what+": read-only", plan.R(tmp), false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
}

// readonly closes the rootfs and the read-only paths.
func (c *compiler) readonly() {
	if c.spec.Root != nil && c.spec.Root.Readonly {
		c.Add(plan.MountSetattr("make the rootfs read-only", c.root, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	}
	for _, p := range c.spec.Linux.ReadonlyPaths {
		what := "make " + p + " read-only"
		target, clone := c.Slot(), c.Slot()
		c.If(plan.Openat2(what, c.root, p, unix.O_PATH, 0, inside).Into(target).Passing(unix.ENOENT, unix.ENOTDIR),
			cloneOf(what, plan.R(target), unix.AT_RECURSIVE).Into(clone),
			plan.MountSetattr(what, plan.R(clone), true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}),
			plan.MoveMount(what, plan.R(clone), plan.R(target)),
			plan.Close(plan.R(target)), plan.Close(plan.R(clone)))
	}
}

func cloneOf(what string, fd plan.Arg, flags int) plan.Step {
	return plan.Call(what, unix.SYS_OPEN_TREE, fd, plan.S(""), plan.I(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|flags))
}

// masked hides paths: directories behind one empty read-only tmpfs, everything else behind /dev/null.
func (c *compiler) masked() {
	if len(c.spec.Linux.MaskedPaths) == 0 {
		return
	}
	empty := &mountOptions{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, data: []string{"nr_inodes=1", "nr_blocks=1"}}
	c.mask = c.newMount("make an empty directory", "tmpfs", "tmpfs", empty)
	for _, p := range c.spec.Linux.MaskedPaths {
		what := "mask " + p
		target := c.Slot()
		dir := c.cover(what, plan.R(c.mask), target)
		file := c.cover(what, plan.F(c.in.null, "null"), target)
		asFile := append([]plan.Step{
			plan.Openat2(what, c.root, p, unix.O_PATH, 0, inside).Into(target).Passing(unix.ENOENT, unix.ENOTDIR),
			{Nr: plan.NrNop, Skip: len(file), What: "skip"},
		}, file...)
		asFile[0].Skip = 1
		asFile = append(asFile, plan.Step{Nr: plan.NrNop, Skip: len(dir), What: "skip"})
		c.Unless(plan.Openat2(what, c.root, p, unix.O_PATH|unix.O_DIRECTORY, 0, inside).Into(target).Passing(unix.ENOENT, unix.ENOTDIR), asFile...)
		c.Add(dir...)
	}
}

// cover attaches a copy of the mount from on target. Before Linux 6.15 a detached mount can not be copied, so the
// first to need one takes the mount itself.
func (c *compiler) cover(what string, from plan.Arg, target plan.Slot) []plan.Step {
	clone := c.Slot()
	return []plan.Step{
		{
			Nr: unix.SYS_OPEN_TREE, What: what, Save: clone, Skip: 1, Pass: []syscall.Errno{unix.EINVAL},
			Args: cloneOf(what, from, 0).Args,
		},
		plan.Call(what, unix.SYS_FCNTL, from, plan.I(unix.F_DUPFD_CLOEXEC), plan.I(3)).Into(clone),
		plan.MoveMount(what, plan.R(clone), plan.R(target)),
		plan.Close(plan.R(clone)), plan.Close(plan.R(target)),
	}
}
