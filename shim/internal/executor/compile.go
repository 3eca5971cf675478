package executor

import (
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/shim/internal/plan"
)

// inside resolves a path as the container would, without /proc magic links; real forbids every symbolic link.
const (
	inside = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	real   = inside | unix.RESOLVE_NO_SYMLINKS
)

// compiler builds the plan of one process.
type compiler struct {
	*plan.Plan
	in     *inputs
	spec   *specs.Spec
	host   *host
	root   plan.Arg            // the rootfs
	made   map[int]plan.Slot   // detached mounts the child made before it left the old root, by mount index
	dirs   map[string]plan.Arg // directories opened for devices
	devpts plan.Slot
	mask   plan.Slot // empty read-only tmpfs
	cwd    plan.Slot
	// apparmor is the process's own attr/apparmor/exec, open for writing.
	apparmor plan.Slot
	private  bool // the mount namespace's root is not shared
}

// compileStart is the plan of a container's first process. It is pure: it only writes down numbers of in.
func compileStart(spec *specs.Spec, in *inputs) (*plan.Plan, error) {
	c := &compiler{
		Plan: plan.New(384), in: in, spec: spec, host: in.host, root: plan.F(in.rootfs, "rootfs"),
		made: map[int]plan.Slot{}, dirs: map[string]plan.Arg{},
	}
	// 1. what only the host's root may do
	c.begin(spec.Process)
	// 2. the namespaces
	c.enterNamespaces()
	// 3. the root file system
	if err := c.makeEarlyMounts(); err != nil {
		return nil, err
	}
	c.pivot()
	for i := range spec.Mounts {
		if err := c.mount(i); err != nil {
			return nil, fmt.Errorf("mount %s: %w", spec.Mounts[i].Destination, err)
		}
	}
	if err := c.devices(); err != nil {
		return nil, err
	}
	if err := c.stdio(spec.Process, c.in.stdio); err != nil {
		return nil, err
	}
	c.cwd = c.ensureDir("working directory "+spec.Process.Cwd, spec.Process.Cwd)
	// 4. what is closed once all is in place
	if err := c.sysctls(spec.Linux.Sysctl); err != nil {
		return nil, err
	}
	c.readonly()
	c.masked()
	// 5. the process itself
	if err := c.finish(spec.Process, in.filter, in.userns()); err != nil {
		return nil, err
	}
	return c.Plan, nil
}

// compileExec is the plan of a further process.
func compileExec(x *Exec, h *host) (*plan.Plan, error) {
	c := &compiler{Plan: plan.New(160), in: &inputs{id: x.ID, host: h, stdio: x.Stdio}, host: h}
	c.begin(x.Process)
	userns := x.Namespaces&unix.CLONE_NEWUSER != 0
	flags := x.Namespaces&^unix.CLONE_NEWPID | unix.CLONE_NEWNS // the pid namespace is entered by being born in it
	c.Add(plan.Call("join the container's namespaces", unix.SYS_SETNS, plan.F(x.Init, "init"), plan.I(flags)))
	if userns {
		c.becomeRoot()
	}
	c.session()
	root := c.Open(plan.Call("open the container's root", unix.SYS_OPENAT, plan.I(unix.AT_FDCWD), plan.S("/"),
		plan.I(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)))
	c.root = plan.R(root)
	if err := c.stdio(x.Process, x.Stdio); err != nil {
		return nil, err
	}
	c.cwd = c.Open(plan.Openat2("working directory "+x.Process.Cwd, c.root, x.Process.Cwd, unix.O_PATH|unix.O_DIRECTORY, 0, inside))
	if err := c.finish(x.Process, x.Filter, userns); err != nil {
		return nil, err
	}
	return c.Plan, nil
}

// begin is what every process does first, as root of the host.
func (c *compiler) begin(p *specs.Process) {
	c.Add(plan.Prctl("make itself undumpable", unix.PR_SET_DUMPABLE, plan.I(0)))
	for _, sig := range c.host.ignored {
		c.Add(plan.Call("reset a signal", unix.SYS_RT_SIGACTION, plan.I(sig), plan.B(make([]byte, 32)), plan.I(0), plan.I(8)))
	}
	c.Add(plan.UnblockSignals(),
		plan.Call("umask", unix.SYS_UMASK, plan.I(0)))
	if p.OOMScoreAdj != nil {
		fd := c.Open(plan.Openat2("open oom_score_adj", plan.F(c.host.proc, "proc"), "self/oom_score_adj", unix.O_WRONLY, 0,
			unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV))
		c.Add(plan.Write("set oom_score_adj", plan.R(fd), fmt.Sprint(*p.OOMScoreAdj)).Noting(unix.EACCES, unix.EPERM),
			plan.Close(plan.R(fd)))
	}
	c.raiseRlimits(p.Rlimits)
	if p.ApparmorProfile != "" && c.host.apparmor { // opened by who will write it: see NrClone's second process
		c.apparmor = c.Slot()
		c.openLabel()
	}
}

// openLabel opens the file of the process that runs the step.
func (c *compiler) openLabel() {
	c.Add(plan.Openat2("open the AppArmor attribute", plan.F(c.host.proc, "proc"), "thread-self/attr/apparmor/exec", unix.O_WRONLY, 0,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV).Into(c.apparmor))
}

// becomeRoot takes the identity of root in a user namespace that was just entered.
func (c *compiler) becomeRoot() {
	c.Add(plan.Call("become gid 0 of the user namespace", unix.SYS_SETRESGID, plan.I(0), plan.I(0), plan.I(0)),
		plan.Call("become uid 0 of the user namespace", unix.SYS_SETRESUID, plan.I(0), plan.I(0), plan.I(0)),
		plan.Prctl("make itself undumpable again", unix.PR_SET_DUMPABLE, plan.I(0)))
}

func (c *compiler) session() {
	c.Add(plan.Call("make a session keyring", unix.SYS_KEYCTL, plan.I(unix.KEYCTL_JOIN_SESSION_KEYRING), plan.S("_ses."+c.in.id)).Passing(unix.ENOSYS),
		plan.Call("setsid", unix.SYS_SETSID))
}

// enterNamespaces joins the pod's namespaces and makes the container's own. The user namespace comes first: the
// others are then owned by it.
func (c *compiler) enterNamespaces() {
	in := c.in
	if in.userns() {
		c.prepareVisible()
		c.Add(plan.Call("join the user namespace", unix.SYS_SETNS, plan.F(in.join["user"], "user"), plan.I(unix.CLONE_NEWUSER)))
		c.becomeRoot()
	}
	for _, kind := range slices.Sorted(maps.Keys(in.join)) {
		if kind != "user" && kind != "pid" { // a process is born in its pid namespace
			c.Add(plan.Call("join the "+kind+" namespace", unix.SYS_SETNS, plan.F(in.join[kind], kind), plan.I(NamespaceFlag(kind))))
		}
	}
	flags := 0
	for kind := range in.fresh {
		flags |= NamespaceFlag(kind)
	}
	c.Add(plan.Call("make namespaces", unix.SYS_UNSHARE, plan.I(flags)))
	if in.newPid && in.userns() {
		c.Add(plan.Call("make a pid namespace", plan.NrClone, plan.I(unix.CLONE_NEWPID)),
			plan.Barrier("wait for the supervisor"), plan.Prctl("make itself undumpable", unix.PR_SET_DUMPABLE, plan.I(0)))
		if c.apparmor != 0 {
			c.openLabel()
		}
	}
	c.session()
	if in.fresh["uts"] {
		c.hostname()
	}
	if in.fresh["net"] {
		loopbackUp(c.Plan)
	}
}

// prepareVisible makes a proc and a sysfs visible in the mount namespace: the kernel lets a user namespace mount
// these only where nobody has hidden parts of them.
func (c *compiler) prepareVisible() {
	c.Add(plan.Call("make a mount namespace", unix.SYS_UNSHARE, plan.I(unix.CLONE_NEWNS)))
	for _, v := range [...][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}} {
		fstype, dir := v[0], v[1]
		what := "mount " + fstype
		fs := c.Open(plan.Fsopen(what, fstype))
		c.Add(plan.FsCreate(what, plan.R(fs)))
		m := c.Open(plan.Fsmount(what, plan.R(fs), 0))
		c.Add(plan.Call(what, unix.SYS_MOVE_MOUNT, plan.R(m), plan.S(""), plan.I(unix.AT_FDCWD), plan.S(dir), plan.I(unix.MOVE_MOUNT_F_EMPTY_PATH)),
			plan.Close(plan.R(fs)), plan.Close(plan.R(m)))
	}
}

func (c *compiler) hostname() {
	if n := c.spec.Hostname; n != "" {
		c.Add(plan.Call("set the hostname", unix.SYS_SETHOSTNAME, plan.S(n), plan.I(len(n))))
	}
	if n := c.spec.Domainname; n != "" {
		c.Add(plan.Call("set the domainname", unix.SYS_SETDOMAINNAME, plan.S(n), plan.I(len(n))))
	}
}

// NamespaceFlag is the CLONE_NEW* flag of a kind.
func NamespaceFlag(kind string) int {
	switch kind {
	case "net":
		return unix.CLONE_NEWNET
	case "ipc":
		return unix.CLONE_NEWIPC
	case "uts":
		return unix.CLONE_NEWUTS
	case "user":
		return unix.CLONE_NEWUSER
	case "pid":
		return unix.CLONE_NEWPID
	case "cgroup":
		return unix.CLONE_NEWCGROUP
	case "mnt":
		return unix.CLONE_NEWNS
	}
	return 0
}

// loopbackUp brings up lo of the network namespace the process is in.
func loopbackUp(p *plan.Plan) {
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	s := p.Open(plan.Call("socket", unix.SYS_SOCKET, plan.I(unix.AF_INET), plan.I(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), plan.I(0)))
	p.Add(plan.Call("set lo up", unix.SYS_IOCTL, plan.R(s), plan.I(unix.SIOCSIFFLAGS), plan.B(ifreq)), plan.Close(plan.R(s)))
}

// SpecNamespaceFlag is the CLONE_NEW* flag of a namespace type of the runtime spec.
func SpecNamespaceFlag(t specs.LinuxNamespaceType) int { return NamespaceFlag(NamespaceKind(t)) }
