package executor

import (
	"encoding/binary"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/shim/internal/plan"
)

// finish is the last part of every plan: limits, identity, capabilities, filter, execve. The order is runc's:
// without no_new_privs a filter can only be loaded while CAP_SYS_ADMIN is there, with it the filter comes last.
func (c *compiler) finish(p *specs.Process, filter *Filter, userns bool) error {
	c.scheduling(p)
	c.label(p)
	if c.spec != nil && c.spec.Linux.Personality != nil {
		persona := uint64(0)
		if c.spec.Linux.Personality.Domain == specs.PerLinux32 {
			persona = 8 // PER_LINUX32
		}
		c.Add(plan.Call("set the personality", unix.SYS_PERSONALITY, plan.I(persona)))
	}
	if p.NoNewPrivileges {
		c.Add(plan.Prctl("set no_new_privs", unix.PR_SET_NO_NEW_PRIVS, plan.I(1)))
	}
	c.setRlimits(p.Rlimits)
	if filter != nil && !p.NoNewPrivileges {
		c.seccomp(filter)
	}
	have := c.host.have
	if userns {
		have = ^uint64(0)
	}
	caps, err := parseCaps(p.Capabilities, c.host.lastCap, have)
	if err != nil {
		return err
	}
	c.dropBounding(caps)
	c.user(&p.User)
	c.setCaps(caps)
	c.Add(plan.Call("enter the working directory "+p.Cwd, unix.SYS_FCHDIR, plan.R(c.cwd)))
	umask := uint32(0o022)
	if p.User.Umask != nil {
		umask = *p.User.Umask & 0o777
	}
	c.Add(plan.Call("set the umask", unix.SYS_UMASK, plan.I(umask)),
		plan.Call("close what the process must not inherit", unix.SYS_CLOSE_RANGE, plan.I(3), plan.I(^uint32(0)), plan.I(unix.CLOSE_RANGE_CLOEXEC)))
	if filter != nil && p.NoNewPrivileges {
		c.seccomp(filter)
	}
	c.exec(p)
	return nil
}

// label asks for the AppArmor profile that execve changes to. The file was opened in begin, through the host's
// verified procfs; nothing in the container can stand in its place.
func (c *compiler) label(p *specs.Process) {
	if c.apparmor != 0 {
		c.Add(plan.Write("set AppArmor profile "+p.ApparmorProfile, plan.R(c.apparmor), "exec "+p.ApparmorProfile), plan.Close(plan.R(c.apparmor)))
	}
}

func (c *compiler) seccomp(f *Filter) {
	c.Add(plan.Call("load the seccomp filter", unix.SYS_SECCOMP, plan.I(unix.SECCOMP_SET_MODE_FILTER), plan.I(uint64(f.Flags)),
		plan.Arg{Kind: plan.Filter, S: f.Code}))
}

// scheduling sets the I/O priority and the scheduler, if the process says so.
func (c *compiler) scheduling(p *specs.Process) {
	if io := p.IOPriority; io != nil {
		class := map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[io.Class]
		c.Add(plan.Call("set the I/O priority", unix.SYS_IOPRIO_SET, plan.I(1), plan.I(0), plan.I(class<<13|io.Priority)))
	}
	s := p.Scheduler
	if s == nil {
		return
	}
	policies := map[specs.LinuxSchedulerPolicy]uint32{
		specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6,
	}
	flags := map[specs.LinuxSchedulerFlag]uint64{
		specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8,
		specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64,
	}
	var f uint64
	for _, name := range s.Flags {
		f |= flags[name]
	}
	b := binary.LittleEndian.AppendUint32(nil, 48)
	b = binary.LittleEndian.AppendUint32(b, policies[s.Policy])
	b = binary.LittleEndian.AppendUint64(b, f)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Nice))     //nolint:gosec // two's complement
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Priority)) //nolint:gosec // small
	for _, v := range [...]uint64{s.Runtime, s.Deadline, s.Period} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	c.Add(plan.Call("set the scheduler", unix.SYS_SCHED_SETATTR, plan.I(0), plan.B(b), plan.I(0)))
}

// user takes the identity, keeping the permitted capabilities until setCaps.
func (c *compiler) user(u *specs.User) {
	groups := make([]byte, 0, 4*len(u.AdditionalGids)+4)
	for _, g := range u.AdditionalGids {
		groups = binary.LittleEndian.AppendUint32(groups, g)
	}
	c.Add(plan.Prctl("keep capabilities", unix.PR_SET_KEEPCAPS, plan.I(1)),
		plan.Call("set the groups", unix.SYS_SETGROUPS, plan.I(len(u.AdditionalGids)), plan.B(groups)),
		plan.Call("set the gid", unix.SYS_SETRESGID, plan.I(u.GID), plan.I(u.GID), plan.I(u.GID)),
		plan.Call("set the uid", unix.SYS_SETRESUID, plan.I(u.UID), plan.I(u.UID), plan.I(u.UID)),
		plan.Prctl("stop keeping capabilities", unix.PR_SET_KEEPCAPS, plan.I(0)))
}

func (c *compiler) dropBounding(caps *capSets) {
	for n := range c.host.lastCap + 1 {
		if caps.bounding&(1<<n) == 0 {
			c.Add(plan.Prctl("drop "+capName(n)+" from the bounding set", unix.PR_CAPBSET_DROP, plan.I(n)))
		}
	}
}

func (c *compiler) setCaps(caps *capSets) {
	header := binary.LittleEndian.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3)
	var data []byte
	for _, shift := range [...]uint{0, 32} {
		for _, set := range [...]uint64{caps.effective, caps.permitted, caps.inheritable} {
			data = binary.LittleEndian.AppendUint32(data, uint32(set>>shift)) //nolint:gosec // one half at a time
		}
	}
	c.Add(plan.Call("set the capabilities", unix.SYS_CAPSET, plan.B(header), plan.B(data)),
		plan.Prctl("clear the ambient capabilities", unix.PR_CAP_AMBIENT, plan.I(unix.PR_CAP_AMBIENT_CLEAR_ALL)))
	for n := range c.host.lastCap + 1 {
		if caps.ambient&(1<<n) != 0 {
			c.Add(plan.Prctl("raise ambient "+capName(n), unix.PR_CAP_AMBIENT, plan.I(unix.PR_CAP_AMBIENT_RAISE), plan.I(n)))
		}
	}
}

// exec appends the execve: of the path given, or of each candidate in $PATH in turn.
func (c *compiler) exec(p *specs.Process) {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		c.Add(plan.Execve(name, p.Args, p.Env))
		return
	}
	var dirs []string
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = strings.Split(v, ":") // the last one wins, as in getenv of most runtimes' children
		}
	}
	dirs = slices.DeleteFunc(dirs, func(d string) bool { return !path.IsAbs(d) })
	for _, d := range dirs {
		s := plan.Execve(path.Join(d, name), p.Args, p.Env)
		c.Add(s.Passing(unix.ENOENT, unix.ENOTDIR).Noting(unix.EACCES))
	}
	c.Add(plan.Call("find "+name+" in $PATH", plan.NrFail, plan.I(int(unix.ENOENT))))
}
