package shims

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// findPod takes hold of a pod's namespaces: the network's by its path, the others by the process of some container.
func (p *Pool) findPod(pod OrphanPod, containers map[string]*containerEntry) (*podEntry, error) {
	e := &podEntry{ns: map[string]*os.File{}}
	if _, own := pod.Namespaces["pid"]; own {
		if err := p.findInit(pod.Group, e); err != nil {
			return nil, err
		}
	}
	for kind, inode := range pod.Namespaces {
		ns, err := findNamespace(kind, inode, pod.Net, e.initPid, containers)
		if err != nil {
			e.close()
			return nil, errs.FailedPrecondition.Errorf("pod %s: %w", pod.ID, err)
		}
		e.ns[kind], e.order = ns, append(e.order, kind)
	}
	return e, nil
}

// findInit takes hold of the process that holds a pod's pid namespace, the only one of its cgroup.
func (p *Pool) findInit(group string, e *podEntry) error {
	pids := p.cfg.Cgroups.Pids(group)
	if len(pids) != 1 {
		return errs.FailedPrecondition.Errorf("%d processes in %s, want the one that holds the pid namespace", len(pids), group)
	}
	init, err := p.pidfdIn(group, pids[0])
	if err != nil {
		return err
	}
	e.init, e.initPid = init, pids[0]
	return nil
}

// findNamespace opens a namespace where it may be found. A container's process may have entered another one, the node's too
// if it is privileged; and a pid may be another process's by now: so only the very one counts.
func findNamespace(kind string, inode uint64, net string, init int, containers map[string]*containerEntry) (*os.File, error) {
	var paths []string
	switch kind {
	case "net":
		paths = []string{net}
	case "pid":
		paths = []string{fmt.Sprintf("/proc/%d/ns/pid", init)}
	default:
		for _, c := range containers {
			paths = append(paths, fmt.Sprintf("/proc/%d/ns/%s", c.pid, kind))
		}
	}
	var all []error
	for _, path := range paths {
		ns, err := openNamespace(path, kind)
		if err != nil {
			all = append(all, err)
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(ns.Fd()), &st); err == nil && st.Ino == inode {
			return ns, nil
		}
		_ = ns.Close()
		all = append(all, fmt.Errorf("%s is another one", path))
	}
	return nil, fmt.Errorf("its %s namespace is not to be found: %w", kind, errors.Join(all...))
}

func openNamespace(path, kind string) (*os.File, error) {
	f, err := os.Open(path) //nolint:gosec // of a process of ours, or a path of ours
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		_ = f.Close()
		return nil, fmt.Errorf("%s is no namespace", path)
	}
	if kind == "user" {
		return outermost(f)
	}
	return f, nil
}

// outermost is the user namespace below this process's own: the container's process may have made others within.
func outermost(ns *os.File) (*os.File, error) {
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &own); err != nil {
		_ = ns.Close()
		return nil, err
	}
	for {
		const parentOf = 0xb702 // NS_GET_PARENT: _IO(NSIO, 2)
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, ns.Fd(), parentOf, 0)
		if errno != 0 { // EPERM: it is this process's own, or beyond
			_ = ns.Close()
			return nil, os.NewSyscallError("ioctl NS_GET_PARENT", errno)
		}
		parent := os.NewFile(fd, "user namespace")
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil || st.Ino == own.Ino && st.Dev == own.Dev {
			_ = parent.Close()
			return ns, err
		}
		_ = ns.Close()
		ns = parent
	}
}
