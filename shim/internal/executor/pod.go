package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/launch"
	"github.com/berth-project/berth/shim/internal/plan"
)

// Pod is a set of namespaces that outlive the process which made them: the descriptors pin them.
type Pod struct {
	Kinds []string   // net, ipc, uts, pid, user
	Files []*os.File // one for each of Kinds
	// Init is the process that reaps in the pod's own pid namespace; nil without one.
	Init *Process
}

// Close lets go of the namespaces.
func (p *Pod) Close() {
	for _, f := range p.Files {
		_ = f.Close()
	}
	if p.Init != nil {
		_ = p.Init.Pidfd.Close()
	}
}

// Pod makes the namespaces of a pod. One child is born in all of them, sets them up and ends, unless a pid
// namespace is among them: then it becomes that namespace's init.
func (e *Executor) Pod(ctx context.Context, r *v1.RunPod, cg Cgroups) (*Pod, error) {
	kinds, flags, err := podKinds(r)
	if err != nil {
		return nil, err
	}
	withInit := slices.Contains(kinds, "pid")
	p := plan.New(64)
	if err := e.compilePod(p, r, kinds); err != nil {
		return nil, err
	}
	req := &launch.Request{Plan: p, Flags: flags, Cgroup: -1, PidNS: -1}
	if withInit {
		req.Cgroup, req.Tasks = cg.Unified, cg.Tasks
	}
	c, err := e.launcher.Launch(ctx, req)
	if err != nil {
		return nil, err
	}
	pod := &Pod{Kinds: kinds}
	if err := pod.adopt(c, r); err != nil {
		pod.Close()
		return nil, errors.Join(err, c.Abort())
	}
	if err := c.Wait(ctx); err != nil {
		pod.Close()
		return nil, err
	}
	if withInit {
		pod.Init = &Process{Pid: c.Pid, Pidfd: c.Pidfd, Proc: c.Process()}
		return pod, nil
	}
	return pod, c.Pidfd.Close()
}

// adopt writes the child's maps, opens its namespaces and lets it go on.
func (p *Pod) adopt(c *launch.Child, r *v1.RunPod) error {
	dir := "/proc/" + strconv.Itoa(c.Pid)
	if len(r.UIDMappings) > 0 {
		if err := writeMaps(dir, v1Lines(r.UIDMappings), v1Lines(r.GIDMappings)); err != nil {
			return err
		}
	}
	for _, kind := range p.Kinds {
		f, err := os.Open(dir + "/ns/" + kind)
		if err != nil {
			return fmt.Errorf("open the %s namespace: %w", kind, err)
		}
		p.Files = append(p.Files, f)
	}
	return c.Release()
}

func v1Lines(m []v1.IDMapping) string {
	s := ""
	for _, l := range m {
		s += fmt.Sprintf("%d %d %d\n", l.ContainerID, l.HostID, l.Size)
	}
	return s
}

func podKinds(r *v1.RunPod) (kinds []string, flags uint64, err error) {
	for _, kind := range r.Namespaces {
		if !slices.Contains([]string{"net", "ipc", "uts", "pid"}, kind) || slices.Contains(kinds, kind) {
			return nil, 0, errs.InvalidArgument.Errorf("pod namespace %q: want each of net, ipc, uts, pid at most once", kind)
		}
		kinds = append(kinds, kind)
	}
	if (len(r.UIDMappings) == 0) != (len(r.GIDMappings) == 0) {
		return nil, 0, errs.InvalidArgument.Errorf("a user namespace needs uid and gid mappings")
	}
	if len(r.UIDMappings) > 0 {
		kinds = append(kinds, "user")
	}
	for _, kind := range kinds {
		flags |= uint64(NamespaceFlag(kind)) //nolint:gosec // flags are positive
	}
	return kinds, flags, nil
}

// compilePod is the plan of the process that sets up a pod's namespaces.
func (e *Executor) compilePod(p *plan.Plan, r *v1.RunPod, kinds []string) error {
	has := func(kind string) bool { return slices.Contains(kinds, kind) }
	p.Add(plan.Prctl("make itself undumpable", unix.PR_SET_DUMPABLE, plan.I(0)),
		plan.UnblockSignals(),
		plan.Barrier("wait for the supervisor"))
	if has("user") {
		c := compiler{Plan: p}
		c.becomeRoot()
	}
	if has("uts") && r.Hostname != "" {
		p.Add(plan.Call("set the hostname", unix.SYS_SETHOSTNAME, plan.S(r.Hostname), plan.I(len(r.Hostname))))
	}
	if has("net") {
		loopbackUp(p)
	}
	if err := writeSysctls(p, e.host.proc, r.Sysctls, has); err != nil {
		return err
	}
	if !has("pid") {
		p.Add(plan.Call("end", plan.NrExit, plan.I(0)))
		return nil
	}
	return compileInit(p, e.host, e.image)
}

// compileInit ends the plan in the pod's init: without a capability, in an empty read-only root, so that nothing
// of the host is to be seen through it.
func compileInit(p *plan.Plan, h *host, image *os.File) error {
	what := "make the pod init's root"
	p.Add(plan.Call(what, unix.SYS_UNSHARE, plan.I(unix.CLONE_NEWNS)))
	c := &compiler{Plan: p, host: h, in: &inputs{id: "init", host: h}}
	root := c.newMount(what, "tmpfs", "berth", &mountOptions{
		set:  unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		data: []string{"nr_inodes=1", "nr_blocks=1", "mode=555"},
	})
	p.Add(
		plan.Call(what, unix.SYS_MOVE_MOUNT, plan.R(root), plan.S(""), plan.I(unix.AT_FDCWD), plan.S("/root"), plan.I(unix.MOVE_MOUNT_F_EMPTY_PATH)),
		plan.Call(what, unix.SYS_FCHDIR, plan.R(root)),
		plan.Call(what, unix.SYS_PIVOT_ROOT, plan.S("."), plan.S(".")),
		plan.Call(what, unix.SYS_UMOUNT2, plan.S("."), plan.I(unix.MNT_DETACH)),
		plan.Call(what, unix.SYS_CHDIR, plan.S("/")),
	)
	for _, sig := range h.ignored {
		p.Add(plan.Call("reset a signal", unix.SYS_RT_SIGACTION, plan.I(sig), plan.B(make([]byte, 32)), plan.I(0), plan.I(8)))
	}
	c.session()
	for fd := range 3 {
		p.Add(plan.Call("set up stdio", unix.SYS_DUP3, plan.F(h.nullRW, "null"), plan.I(fd), plan.I(0)))
	}
	none := &capSets{}
	c.dropBounding(none)
	c.setCaps(none)
	p.Add(plan.Prctl("set no_new_privs", unix.PR_SET_NO_NEW_PRIVS, plan.I(1)),
		plan.Call("close everything", unix.SYS_CLOSE_RANGE, plan.I(3), plan.I(^uint32(0)), plan.I(unix.CLOSE_RANGE_CLOEXEC)),
		plan.Call("start the pod's init", unix.SYS_EXECVEAT, plan.F(int(image.Fd()), "init"), plan.S(""),
			plan.Strings([]string{"berth-init"}), plan.Strings(nil), plan.I(unix.AT_EMPTY_PATH)))
	return nil
}
