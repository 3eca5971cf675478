package executor

import (
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/plan"
)

// defaultDevices are the devices every container has (runtime-spec config-linux, "Default Devices"); the
// terminal's are made by stdio and by the links.
func defaultDevices() []specs.LinuxDevice {
	dev := func(name string, major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: "/dev/" + name, Type: "c", Major: major, Minor: minor}
	}
	return []specs.LinuxDevice{
		dev("null", 1, 3), dev("zero", 1, 5), dev("full", 1, 7), dev("random", 1, 8), dev("urandom", 1, 9), dev("tty", 5, 0),
	}
}

func deviceType(t string) uint32 {
	switch t {
	case "b":
		return unix.S_IFBLK
	case "p":
		return unix.S_IFIFO
	}
	return unix.S_IFCHR
}

// devices makes the device nodes and the links in /dev, unless /dev is a bind mount, which is somebody's own.
func (c *compiler) devices() error {
	tmpfs := false
	for i := range c.spec.Mounts {
		if path.Clean(c.spec.Mounts[i].Destination) == "/dev" {
			if c.in.sources[i].opts.bind {
				return nil
			}
			tmpfs = true
		}
	}
	for _, d := range defaultDevices() {
		same := func(o specs.LinuxDevice) bool { return path.Clean(o.Path) == d.Path }
		if slices.ContainsFunc(c.spec.Linux.Devices, same) {
			continue
		}
		if err := c.device(&d, c.in.std[d.Path], !tmpfs); err != nil {
			return err
		}
	}
	for i := range c.spec.Linux.Devices {
		node := 0
		if c.in.userns() {
			node = c.in.nodes[i]
		}
		if err := c.device(&c.spec.Linux.Devices[i], node, !tmpfs); err != nil {
			return err
		}
	}
	dev := c.dir("/dev")
	c.Add(plan.Call("remove /dev/ptmx", unix.SYS_UNLINKAT, dev, plan.S("ptmx"), plan.I(0)).Passing(unix.ENOENT, unix.EISDIR))
	for _, l := range [...][2]string{
		{"pts/ptmx", "ptmx"},
		{"/proc/self/fd", "fd"},
		{"/proc/self/fd/0", "stdin"},
		{"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"},
		{"/proc/kcore", "core"},
	} {
		if l[1] == "core" && !c.host.kcore {
			continue
		}
		c.Add(plan.Call("link /dev/"+l[1], unix.SYS_SYMLINKAT, plan.S(l[0]), dev, plan.S(l[1])).Passing(unix.EEXIST))
	}
	return nil
}

// dir opens the directory p inside the rootfs once for all devices in it.
func (c *compiler) dir(p string) plan.Arg {
	if a, ok := c.dirs[p]; ok {
		return a
	}
	a := plan.R(c.ensureDir("open "+p, p))
	c.dirs[p] = a
	return a
}

// device makes one node, or binds the host's node (a detached mount) in a user namespace. replace says that
// something else may be there.
func (c *compiler) device(d *specs.LinuxDevice, node int, replace bool) error {
	p := path.Clean("/" + d.Path)
	what := "device " + p
	if p == "/" || (d.Type != "c" && d.Type != "b" && d.Type != "u" && d.Type != "p") {
		return errs.InvalidArgument.Errorf("device %q of type %q", d.Path, d.Type)
	}
	if c.in.userns() && d.Type != "p" {
		target := c.target(what, p, false, inside)
		c.Add(plan.MoveMount(what, plan.F(node, "host "+d.Path), plan.R(target)), plan.Close(plan.R(target)))
		return nil
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	dir, base := c.dir(path.Dir(p)), path.Base(p)
	if replace {
		c.Add(plan.Call(what, unix.SYS_UNLINKAT, dir, plan.S(base), plan.I(0)).Passing(unix.ENOENT))
	}
	c.Add(plan.Call(what, unix.SYS_MKNODAT, dir, plan.S(base), plan.I(mode|deviceType(d.Type)),
		plan.I(unix.Mkdev(uint32(d.Major), uint32(d.Minor))))) //nolint:gosec // device numbers
	uid, gid := uint32(0), uint32(0)
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	if uid != 0 || gid != 0 {
		c.Add(plan.Call(what, unix.SYS_FCHOWNAT, dir, plan.S(base), plan.I(uid), plan.I(gid), plan.I(unix.AT_SYMLINK_NOFOLLOW)))
	}
	return nil
}

// null makes descriptor i the null device: the container's own node for its first process, which made it a moment
// ago, and the host's, read-only mounted, for an exec, which can not trust what is in the container.
func (c *compiler) null(i int) {
	from := plan.F(c.host.nullRW, "null")
	if c.spec != nil {
		from = plan.R(c.Open(plan.Openat2("open /dev/null", c.root, "/dev/null", unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0, inside)))
	}
	c.Add(plan.Call("set up stdio", unix.SYS_DUP3, from, plan.I(i), plan.I(0)).Returning(int64(i)))
}

// stdio gives the process its descriptors 0, 1 and 2: the ones passed, or a terminal of the container's own devpts.
func (c *compiler) stdio(p *specs.Process, fds Stdio) error {
	if !p.Terminal {
		for i, fd := range fds {
			if fd < 0 {
				c.null(i)
				continue
			}
			c.Add(plan.Call("set up stdio", unix.SYS_DUP3, plan.F(fd, [...]string{"stdin", "stdout", "stderr"}[i]), plan.I(i), plan.I(0)).Returning(int64(i)))
		}
		return nil
	}
	if c.devpts != 0 {
		c.Add(plan.Call("open a terminal", unix.SYS_OPENAT, plan.R(c.devpts), plan.S("ptmx"), plan.I(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK)).Into(plan.Console))
	} else {
		c.Add(plan.Openat2("open a terminal", c.root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0, inside).Into(plan.Console))
	}
	peer := c.Slot()
	c.Add(
		plan.Call("unlock the terminal", unix.SYS_IOCTL, plan.R(plan.Console), plan.I(unix.TIOCSPTLCK), plan.B(make([]byte, 4))),
		plan.Call("open the terminal's other side", unix.SYS_IOCTL, plan.R(plan.Console), plan.I(unix.TIOCGPTPEER), plan.I(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).Into(peer),
	)
	if s := p.ConsoleSize; s != nil {
		size := []byte{byte(s.Height), byte(s.Height >> 8), byte(s.Width), byte(s.Width >> 8), 0, 0, 0, 0}
		c.Add(plan.Call("set the terminal's size", unix.SYS_IOCTL, plan.R(plan.Console), plan.I(unix.TIOCSWINSZ), plan.B(size)))
	}
	c.Add(plan.Call("own the terminal", unix.SYS_FCHOWN, plan.R(peer), plan.I(p.User.UID), plan.I(-1)).Passing(unix.EPERM, unix.EINVAL))
	if c.spec != nil { // not for an exec: /dev/console is the container's own terminal
		target := c.target("bind /dev/console", "/dev/console", false, inside)
		clone := c.Open(cloneOf("bind /dev/console", plan.R(peer), 0))
		c.Add(plan.MoveMount("bind /dev/console", plan.R(clone), plan.R(target)), plan.Close(plan.R(target)))
	}
	c.Add(plan.Step{Nr: plan.NrSendConsole, What: "send the terminal"})
	for i := range 3 {
		c.Add(plan.Call("set up stdio", unix.SYS_DUP3, plan.R(peer), plan.I(i), plan.I(0)).Returning(int64(i)))
	}
	c.Add(plan.Call("set the controlling terminal", unix.SYS_IOCTL, plan.I(0), plan.I(unix.TIOCSCTTY), plan.I(0)))
	return nil
}
