package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/launch"
	"github.com/berth-project/berth/shim/internal/plan"
)

// prepareMount opens what mount i of the spec needs from the host's mount namespace.
func (in *inputs) prepareMount(i int, m *specs.Mount, s *Start) error {
	opts, err := parseOptions(m)
	if err != nil {
		return err
	}
	src := &in.sources[i]
	*src = source{fd: -1, dir: true, opts: opts}
	switch {
	case opts.bind:
		return in.prepareBind(src, m, s)
	case m.Type == "sysfs" && in.userns() && !in.ownsNet:
		// a sysfs shows a network namespace, and only who owns that may mount it: the host's is bound instead
		src.fd, err = in.clone(unix.AT_FDCWD, "/sys", unix.AT_RECURSIVE)
		if err != nil {
			return err
		}
		opts.recSet, opts.recClr = opts.recSet|opts.set, opts.recClr|opts.clr
		opts.propagation, opts.propagationRec = unix.MS_PRIVATE, true
		return opts.apply(src.fd)
	case m.Type == "cgroup" && !in.fresh["cgroup"]:
		return in.prepareCgroups(src, s)
	}
	return nil
}

func (in *inputs) prepareBind(src *source, m *specs.Mount, s *Start) (err error) {
	flags := uint(0)
	if src.opts.rbind {
		flags = unix.AT_RECURSIVE
	}
	if !path.IsAbs(m.Source) {
		return errs.InvalidArgument.Errorf("the source %q is not an absolute path", m.Source)
	}
	if src.fd, err = in.clone(unix.AT_FDCWD, m.Source, flags); err != nil {
		return fmt.Errorf("source %s: %w", m.Source, err)
	}
	if src.dir, err = statDir(src.fd); err != nil {
		return err
	}
	if src.opts.idmap || len(m.UIDMappings) > 0 {
		userns, err := in.mappingFor(m)
		if err != nil {
			return err
		}
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)} //nolint:gosec // a descriptor
		rec := uint(unix.AT_EMPTY_PATH)
		if src.opts.ridmap {
			rec |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(src.fd, "", rec, attr); err != nil {
			return fmt.Errorf("idmap %s: %w", m.Source, err)
		}
	}
	return src.opts.apply(src.fd)
}

// apply sets the attributes of a detached mount. Propagation is the child's: it takes effect when attached.
func (o *mountOptions) apply(fd int) error {
	if o.recSet|o.recClr != 0 {
		attr := &unix.MountAttr{Attr_set: o.recSet, Attr_clr: o.recClr}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("set recursive attributes: %w", err)
		}
	}
	if o.set|o.clr != 0 {
		attr := &unix.MountAttr{Attr_set: o.set, Attr_clr: o.clr}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	return nil
}

// mappingFor is a user namespace with the mount's mappings, or the container's if it has none of its own.
func (in *inputs) mappingFor(m *specs.Mount) (int, error) {
	if len(m.UIDMappings) == 0 {
		if fd, ok := in.join["user"]; ok {
			return fd, nil
		}
		return -1, errs.InvalidArgument.Errorf("idmap without mappings and without a user namespace")
	}
	want := idMaps{mapLines(m.UIDMappings), mapLines(m.GIDMappings)}
	if fd, ok := in.join["user"]; ok && want == in.own {
		return fd, nil // the kernel takes the mappings of any namespace: none has to be made, by a process that is started for it
	}
	fd, err := in.mapping(want.uids, want.gids)
	if err != nil {
		return -1, err
	}
	return in.keep(fd), nil
}

// idMaps are the mappings of a user namespace as its uid_map and gid_map have them.
type idMaps struct{ uids, gids string }

// prepareCgroups clones the directories of the container's own cgroups, because without a cgroup namespace a
// fresh mount would show the root of the tree.
func (in *inputs) prepareCgroups(src *source, s *Start) error {
	if in.host.unified != "" {
		if s.Cgroups.Unified < 0 {
			return errs.InvalidArgument.Errorf("a cgroup mount without a cgroup")
		}
		fd, err := in.clone(s.Cgroups.Unified, "", 0)
		if err != nil {
			return err
		}
		src.fd = fd
		return src.opts.apply(fd)
	}
	in.cgroups = make([]int, len(in.host.cgroups))
	for i, h := range in.host.cgroups {
		dir := h.path
		for _, fd := range s.Cgroups.Tasks {
			name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			if err == nil && strings.HasPrefix(name, h.path+"/") {
				dir = path.Dir(name)
			}
		}
		fd, err := in.clone(unix.AT_FDCWD, dir, 0)
		if err != nil {
			return err
		}
		if err := src.opts.apply(fd); err != nil {
			return err
		}
		in.cgroups[i] = fd
	}
	return nil
}

// prepareDevices opens device nodes of the host, for user namespaces, in which none can be made.
func (in *inputs) prepareDevices(spec *specs.Spec) error {
	if !in.userns() {
		return nil
	}
	in.nodes = make([]int, len(spec.Linux.Devices))
	for i := range spec.Linux.Devices {
		d := &spec.Linux.Devices[i]
		fd, err := in.deviceNode(d)
		if err != nil {
			return err
		}
		in.nodes[i] = fd
	}
	for _, d := range defaultDevices() {
		fd, err := in.deviceNode(&d)
		if err != nil {
			return err
		}
		in.std[d.Path] = fd
	}
	return nil
}

func (in *inputs) deviceNode(d *specs.LinuxDevice) (int, error) {
	if d.Type == "p" {
		return -1, nil
	}
	fd, err := in.clone(unix.AT_FDCWD, d.Path, 0)
	if err != nil {
		return -1, fmt.Errorf("device %s: %w", d.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != deviceType(d.Type) || st.Rdev != unix.Mkdev(uint32(d.Major), uint32(d.Minor)) { //nolint:gosec // device numbers
		return -1, errs.InvalidArgument.Errorf("device %s of the host is not %s %d:%d; in a user namespace devices keep their path", d.Path, d.Type, d.Major, d.Minor)
	}
	return fd, nil
}

// newUserNS makes the user namespace that a spec asks for with its mappings.
func (e *Executor) newUserNS(ctx context.Context, l *specs.Linux) (int, error) {
	return newUserNS(ctx, e.launcher, mapLines(l.UIDMappings), mapLines(l.GIDMappings))
}

// newUserNS makes a user namespace: a child is born in it, its maps are written, the namespace is opened, and the
// child let go.
func newUserNS(ctx context.Context, l *launch.Launcher, uids, gids string) (int, error) {
	if uids == "" || gids == "" {
		return -1, errs.InvalidArgument.Errorf("a user namespace needs uid and gid mappings")
	}
	p := plan.New(8)
	p.Add(plan.Barrier("wait for the mappings"), plan.Call("end", plan.NrExit, plan.I(0)))
	c, err := l.Launch(ctx, &launch.Request{Plan: p, Flags: unix.CLONE_NEWUSER, Cgroup: -1, PidNS: -1})
	if err != nil {
		return -1, fmt.Errorf("make a user namespace: %w", err)
	}
	fd, err := mapAndOpen(c, uids, gids)
	if err == nil {
		err = c.Release()
	}
	if err != nil {
		err = errors.Join(err, c.Abort())
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return -1, err
	}
	if err := c.Wait(ctx); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	_ = c.Pidfd.Close()
	return fd, nil
}

func mapAndOpen(c *launch.Child, uids, gids string) (int, error) {
	dir := "/proc/" + strconv.Itoa(c.Pid)
	if err := writeMaps(dir, uids, gids); err != nil {
		return -1, err
	}
	fd, err := unix.Open(dir+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the user namespace: %w", err)
	}
	return fd, nil
}

func writeMaps(dir, uids, gids string) error {
	if err := os.WriteFile(dir+"/uid_map", []byte(uids), 0); err != nil {
		return errs.InvalidArgument.Errorf("uid mappings: %w", err)
	}
	if err := os.WriteFile(dir+"/gid_map", []byte(gids), 0); err != nil {
		return errs.InvalidArgument.Errorf("gid mappings: %w", err)
	}
	return nil
}

func mapLines(m []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, l := range m {
		fmt.Fprintf(&b, "%d %d %d\n", l.ContainerID, l.HostID, l.Size)
	}
	return b.String()
}
