package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// mounts are the standard ones, then the pod's own files and the pod's mounts, shallow before deep, so that a volume
// on /etc does not hide resolv.conf. A pod's mount replaces one of ours at the same path; one on /dev replaces all
// standard ones below it, which it would hide.
func mounts(in Input, sc *cri.LinuxContainerSecurityContext) ([]specs.Mount, error) {
	sysMode, cgMode := "ro", "ro"
	if sc.GetPrivileged() {
		sysMode, cgMode = "rw", "rw"
	}
	base := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysMode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cgMode}},
	}
	mode := "rw"
	if sc.GetReadonlyRootfs() {
		mode = "ro"
	}
	var over []specs.Mount
	own := func(dst, src, mode string) {
		if src != "" {
			over = append(over, bind(in, dst, src, []string{"rbind", "rprivate", mode}))
		}
	}
	own("/dev/shm", in.Files.Shm, "rw")
	own("/etc/resolv.conf", in.Files.ResolvConf, mode)
	own("/etc/hostname", in.Files.Hostname, mode)
	own("/etc/hosts", in.Files.Hosts, mode)
	var asked []specs.Mount
	for i, m := range in.Container.GetMounts() {
		one, err := mount(in, i, m)
		if err != nil {
			return nil, err
		}
		asked = append(asked, one)
	}
	base = slices.DeleteFunc(base, func(b specs.Mount) bool {
		return slices.ContainsFunc(asked, func(a specs.Mount) bool {
			return a.Destination == b.Destination || a.Destination == "/dev" && strings.HasPrefix(b.Destination, "/dev/")
		})
	})
	over = slices.DeleteFunc(over, func(o specs.Mount) bool {
		return slices.ContainsFunc(asked, func(a specs.Mount) bool { return a.Destination == o.Destination })
	})
	over = append(over, asked...)
	depth := func(m specs.Mount) int { return strings.Count(m.Destination, "/") }
	slices.SortStableFunc(over, func(a, b specs.Mount) int { return depth(a) - depth(b) })
	return append(base, over...), nil
}

// bind is a bind mount of one of the pod's own files; in a user namespace its owner is mapped.
func bind(in Input, dst, src string, options []string) specs.Mount {
	m := specs.Mount{Destination: dst, Type: "bind", Source: src, Options: options}
	if UserNamespaced(in.Sandbox) {
		o := in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
		m.UIDMappings, m.GIDMappings = idMappings(o.GetUids()), idMappings(o.GetGids())
	}
	return m
}

func mount(in Input, i int, m *cri.Mount) (specs.Mount, error) {
	dst := path.Clean(m.GetContainerPath())
	if !path.IsAbs(dst) || strings.ContainsRune(dst, 0) {
		return specs.Mount{}, errs.InvalidArgument.Errorf("mounts[%d].container_path %q is not an absolute path", i, m.GetContainerPath())
	}
	if dst == "/" {
		return specs.Mount{}, errs.InvalidArgument.Errorf("mounts[%d].container_path is the root of the container: choose a directory below it", i)
	}
	src := m.GetHostPath()
	if m.GetImage().GetImage() != "" {
		src = in.Images[i]
	}
	if src == "" {
		return specs.Mount{}, errs.InvalidArgument.Errorf("mounts[%d] (%s) has neither host_path nor image", i, dst)
	}
	opts := []string{"rbind"}
	switch m.GetPropagation() {
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		opts = append(opts, "rshared")
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		opts = append(opts, "rslave")
	default:
		opts = append(opts, "rprivate")
	}
	ro, err := readonly(i, m)
	if err != nil {
		return specs.Mount{}, err
	}
	opts = append(opts, ro)
	for _, o := range m.GetMountOptions() {
		switch o {
		case "noexec", "nodev", "nosuid":
			opts = append(opts, o)
		default:
			return specs.Mount{}, errs.InvalidArgument.Errorf("mounts[%d].mount_options: %q: want noexec, nodev or nosuid", i, o)
		}
	}
	return specs.Mount{
		Destination: dst, Type: "bind", Source: src, Options: opts,
		UIDMappings: idMappings(m.GetUidMappings()), GIDMappings: idMappings(m.GetGidMappings()),
	}, nil
}

func readonly(i int, m *cri.Mount) (string, error) {
	switch {
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return "", errs.InvalidArgument.Errorf("mounts[%d].recursive_read_only needs readonly", i)
	case m.GetRecursiveReadOnly() && m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
		return "", errs.InvalidArgument.Errorf("mounts[%d].recursive_read_only needs private propagation", i)
	case m.GetRecursiveReadOnly():
		return "rro", nil
	case m.GetReadonly() || m.GetImage().GetImage() != "":
		return "ro", nil
	}
	return "rw", nil
}

// propagation is the rootfs's own, which must let that of its mounts through.
func propagation(ms []*cri.Mount) string {
	out := ""
	for _, m := range ms {
		switch m.GetPropagation() {
		case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			return "rshared"
		case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			out = "rslave"
		}
	}
	return out
}
