package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// inputs is all that compileStart needs beside the spec: descriptors of what was prepared in the host's mount
// namespace, and facts. The compiler only writes the numbers into the plan.
type inputs struct {
	id      string
	host    *host
	rootfs  int             // detached mount
	sources []source        // one for each of spec.Mounts
	nodes   []int           // in a user namespace: device nodes to bind, one for each of spec.Linux.Devices
	std     map[string]int  // and for each of the default devices, by path
	null    int             // detached mount of /dev/null
	cgroups []int           // without a cgroup namespace: detached mounts for each of host.cgroups
	join    map[string]int  // namespaces to enter
	fresh   map[string]bool // namespaces to make
	newPid  bool            // a new pid namespace
	ownsNet bool            // the network namespace belongs to the container's user namespace
	rootUID uint32          // who the container's root is on the host
	rootGID uint32
	stdio   Stdio
	filter  *Filter
	own     idMaps // of the container's user namespace; empty if it has none
	mapping func(uids, gids string) (int, error)
	opened  []int // all of the above that close must close
}

// source is where a mount comes from; fd is -1 if the child makes it.
type source struct {
	fd   int
	dir  bool
	opts *mountOptions
}

func (in *inputs) userns() bool { _, ok := in.join["user"]; return ok }

func (in *inputs) close() {
	for _, fd := range in.opened {
		_ = unix.Close(fd)
	}
}

func (in *inputs) keep(fd int) int {
	in.opened = append(in.opened, fd)
	return fd
}

// prepare makes the inputs of a container. The caller closes them.
func (e *Executor) prepare(ctx context.Context, s *Start) (_ *inputs, err error) {
	in := &inputs{
		id: s.ID, host: e.host, join: map[string]int{}, fresh: map[string]bool{}, stdio: s.Stdio, filter: s.Filter,
		sources: make([]source, len(s.Spec.Mounts)), std: map[string]int{}, null: -1,
	}
	defer func() {
		if err != nil {
			in.close()
		}
	}()
	in.rootUID, in.rootGID = mapped(s.Spec.Linux.UIDMappings), mapped(s.Spec.Linux.GIDMappings)
	in.own = idMaps{mapLines(s.Spec.Linux.UIDMappings), mapLines(s.Spec.Linux.GIDMappings)}
	in.mapping = func(uids, gids string) (int, error) { return newUserNS(ctx, e.launcher, uids, gids) }
	if err := e.namespaces(ctx, s, in); err != nil {
		return nil, err
	}
	if in.rootfs, err = in.prepareRootfs(&s.Rootfs); err != nil {
		return nil, err
	}
	for i := range s.Spec.Mounts {
		if err := in.prepareMount(i, &s.Spec.Mounts[i], s); err != nil {
			return nil, fmt.Errorf("mount %s: %w", s.Spec.Mounts[i].Destination, err)
		}
	}
	if err := in.prepareDevices(s.Spec); err != nil {
		return nil, err
	}
	if len(s.Spec.Linux.MaskedPaths) > 0 {
		if in.null, err = in.cloneNull(); err != nil {
			return nil, fmt.Errorf("clone /dev/null: %w", err)
		}
	}
	return in, nil
}

// namespaces sorts the spec's namespaces into those entered and those made.
func (e *Executor) namespaces(ctx context.Context, s *Start, in *inputs) error {
	for _, ns := range s.Spec.Linux.Namespaces {
		kind := NamespaceKind(ns.Type)
		fd, join := s.Join[kind]
		switch {
		case ns.Path != "":
			return errs.InvalidArgument.Errorf("namespace %s has a path; namespaces are joined by descriptor", ns.Type)
		case kind == "":
			return errs.Unimplemented.Errorf("namespaces of type %q are not supported", ns.Type)
		case join:
			in.join[kind] = fd
		case kind == "pid":
			in.newPid = s.PidOf < 0
		case kind == "user":
			fd, err := e.newUserNS(ctx, s.Spec.Linux)
			if err != nil {
				return err
			}
			in.join[kind] = in.keep(fd)
		default:
			in.fresh[kind] = true
		}
	}
	if !in.fresh["mnt"] {
		return errs.InvalidArgument.Errorf("the spec lists no mount namespace")
	}
	for kind := range s.Join {
		if _, ok := in.join[kind]; !ok {
			return errs.InvalidArgument.Errorf("join names the %s namespace, which the spec does not list", kind)
		}
	}
	_, net := in.join["net"]
	in.ownsNet = net || in.fresh["net"]
	return nil
}

// NamespaceKind is the kind (proto/shim/v1) of a namespace type of the runtime spec; empty if it is not supported.
func NamespaceKind(t specs.LinuxNamespaceType) string {
	switch t {
	case specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace:
		return string(t)
	case specs.NetworkNamespace:
		return "net"
	case specs.MountNamespace:
		return "mnt"
	case specs.TimeNamespace:
	}
	return ""
}

// clone makes a detached copy of the mount tree at path (below dir), which close releases.
func (in *inputs) clone(dir int, path string, flags uint) (int, error) {
	flags |= unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return -1, err
	}
	return in.keep(fd), nil
}

// cloneNull makes a read-only mount of /dev/null to mask files with.
func (in *inputs) cloneNull() (int, error) {
	fd, err := in.clone(in.host.null, "", 0)
	if !errors.Is(err, unix.EINVAL) {
		return fd, err
	}
	// before Linux 6.15 a detached mount can not be cloned
	if fd, err = in.clone(unix.AT_FDCWD, "/dev/null", unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, err
	}
	var have, want unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &have), unix.Fstat(in.host.null, &want)); err != nil {
		return -1, err
	}
	if have.Rdev != want.Rdev || have.Mode&unix.S_IFMT != unix.S_IFCHR {
		return -1, errs.FailedPrecondition.Errorf("/dev/null is not the null device")
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	return fd, unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr)
}

// prepareRootfs makes the root file system as a detached mount.
func (in *inputs) prepareRootfs(r *v1.Rootfs) (int, error) {
	if r.Path != "" || (len(r.Lower) == 1 && r.Upper == "") {
		src, flags := r.Path, uint(unix.AT_RECURSIVE)
		if src == "" {
			src, flags = r.Lower[0], 0
		}
		fd, err := in.clone(unix.AT_FDCWD, src, flags)
		if err != nil {
			return -1, fmt.Errorf("rootfs %s: %w", src, err)
		}
		attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if r.Path == "" {
			attr.Attr_set = unix.MOUNT_ATTR_RDONLY
		}
		if err := in.idmapWith(fd, attr, true); err != nil {
			return -1, fmt.Errorf("rootfs %s: %w", src, err)
		}
		return fd, nil
	}
	if len(r.Lower) == 0 {
		return -1, errs.InvalidArgument.Errorf("rootfs has neither a path nor layers")
	}
	return in.overlay(r)
}

// idmapWith sets attr on the detached mount fd, with the container's user namespace as its mapping if it has one.
func (in *inputs) idmapWith(fd int, attr *unix.MountAttr, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if in.userns() {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(in.join["user"]) //nolint:gosec // a descriptor
	}
	return unix.MountSetattr(fd, "", flags, attr)
}

// mapped is the host's id of the container's id 0.
func mapped(maps []specs.LinuxIDMapping) uint32 {
	for _, m := range maps {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0
}

// overlay mounts the layers. In a user namespace each image layer is idmapped, so that what belongs to root on disk
// belongs to root in the container.
func (in *inputs) overlay(r *v1.Rootfs) (fd int, err error) {
	if fd, err = in.overlayOf(r, in.layer); !in.userns() || !errors.Is(err, errNoLayerFd) {
		return fd, err
	}
	err = aside(func() error {
		fd, err = in.overlayOf(r, in.layerAside)
		return err
	})
	return fd, err
}

// overlayOf mounts the overlay whose lower layers are given to it by layer.
func (in *inputs) overlayOf(r *v1.Rootfs, layer func(fs int, key, dir string) error) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs) //nolint:errcheck // a context without content
	if err := in.overlayLayers(fs, r, layer); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount the overlay: %w%s", err, fsMessages(fs))
	}
	attr := 0
	if r.Upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mount the overlay: %w", err)
	}
	return in.keep(fd), nil
}

func (in *inputs) overlayLayers(fs int, r *v1.Rootfs, layer func(fs int, key, dir string) error) error {
	for _, dir := range r.Lower {
		if err := layer(fs, "lowerdir+", dir); err != nil {
			return fmt.Errorf("overlay layer %s: %w%s", dir, err, fsMessages(fs))
		}
	}
	if r.Upper == "" {
		return nil
	}
	if in.userns() {
		// the writable layer holds host ids (an idmapped one can not be written by the mounter, who is not in the
		// mapping): its root is the container's root directory and belongs to the container's root
		if err := os.Chown(r.Upper, int(in.rootUID), int(in.rootGID)); err != nil {
			return err
		}
	}
	if err := errors.Join(unix.FsconfigSetString(fs, "upperdir", r.Upper), unix.FsconfigSetString(fs, "workdir", r.Work)); err != nil {
		return fmt.Errorf("overlay upper %s: %w%s", r.Upper, err, fsMessages(fs))
	}
	return nil
}

func (in *inputs) layer(fs int, key, dir string) error {
	if !in.userns() {
		return unix.FsconfigSetString(fs, key, dir)
	}
	fd, err := in.mappedLayer(dir)
	if err != nil {
		return err
	}
	if err := unix.FsconfigSetFd(fs, key, fd); errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", errNoLayerFd, err)
	} else if err != nil {
		return err
	}
	return nil
}

// mappedLayer is a detached mount of a layer, with the container's ids.
func (in *inputs) mappedLayer(dir string) (int, error) {
	fd, err := in.clone(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return -1, err
	}
	if err := in.idmapWith(fd, &unix.MountAttr{Propagation: unix.MS_PRIVATE}, false); err != nil {
		return -1, fmt.Errorf("idmap: %w", err)
	}
	return fd, nil
}

// fsMessages is what the kernel has to say about a file system context.
func fsMessages(fs int) string {
	var b strings.Builder
	buf := make([]byte, 512)
	for range 8 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		fmt.Fprintf(&b, "; %s", strings.TrimSpace(string(buf[:n])))
	}
	return b.String()
}

// statDir tells whether the object of fd is a directory, without asking a file server again.
func statDir(fd int) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return false, os.NewSyscallError("statx", err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// MountRootfs mounts a rootfs on the directory target of the calling process's mount namespace, for runtimes that
// want it there. join holds the pod's user namespace, if it has one.
func MountRootfs(r *v1.Rootfs, spec *specs.Spec, join map[string]int, target string) error {
	in := &inputs{join: map[string]int{}, rootUID: mapped(spec.Linux.UIDMappings), rootGID: mapped(spec.Linux.GIDMappings)}
	defer in.close()
	if fd, ok := join["user"]; ok {
		in.join["user"] = fd
	}
	fd, err := in.prepareRootfs(r)
	if err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the rootfs on %s: %w", target, err)
	}
	return nil
}
