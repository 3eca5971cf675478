package shims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// Orphan is a container that runs although its shim and the daemon that would have replaced it were killed together. What
// both held is found again in the kernel.
type Orphan struct {
	Static  v1.Container
	OCI     *v1.OCIRuntime
	Pid     int
	Started time.Time
	Pipes   map[string]uint64 // inodes of its output, by handle
	Group   string            // its cgroup: a process is believed to be the container's if it is in there
}

// OrphanPod is a pod whose shim is gone. A pod without containers that run cannot be rescued: nothing holds its
// namespaces.
type OrphanPod struct {
	ID         string
	Kinds      []string // of its own namespaces
	Net        string   // where its network namespace is bound, if Kinds has "net"
	Group      string   // the cgroup of the process that holds its pid namespace, if Kinds has "pid"
	Containers []Orphan
}

// Rescue gives a pod and its containers to a living shim, to the one that has the pod already if there is one: it was
// about to be given the containers too when its daemon died. It returns those that the shim has now. Their input and their
// terminals ended with those who held the other end. FailedPrecondition: no container runs, or a namespace is not there.
func (p *Pool) Rescue(ctx context.Context, pod OrphanPod) ([]v1.ContainerState, error) {
	containers := map[string]*containerEntry{}
	var via *containerEntry
	for _, o := range pod.Containers {
		e, err := p.find(o)
		if err != nil {
			p.log.Warn("container not rescued", "container", o.Static.ID, "error", err)
			continue
		}
		containers[o.Static.ID], via = e, e
	}
	if via == nil {
		return nil, errs.FailedPrecondition.Errorf("pod %s has no process", pod.ID)
	}
	err := p.entrust(ctx, pod, via, containers)
	if err != nil {
		for _, c := range containers {
			c.close()
		}
		return nil, err
	}
	var states []v1.ContainerState
	for id, c := range containers {
		states = append(states, v1.ContainerState{ID: id, Pid: c.pid, StartedAt: c.started})
	}
	return states, nil
}

// find takes hold of a container's process and of its output.
func (p *Pool) find(o Orphan) (*containerEntry, error) {
	pidfd, err := p.pidfdIn(o.Group, o.Pid)
	if err != nil {
		return nil, err
	}
	e := &containerEntry{
		static: o.Static, oci: o.OCI, pid: o.Pid, started: o.Started,
		names: []string{v1.HandlePidfd}, handles: map[string]*os.File{v1.HandlePidfd: pidfd},
	}
	for name, f := range findPipes(p.cfg.Cgroups.Pids(o.Group), o.Pipes) {
		e.names, e.handles[name] = append(e.names, name), f
	}
	return e, nil
}

// pidfdIn opens a process and then looks that it is in a cgroup: so it is the one that is meant, whatever the pid was
// used for meanwhile.
func (p *Pool) pidfdIn(group string, pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	if !slices.Contains(p.cfg.Cgroups.Pids(group), pid) || readable(pidfd) {
		return nil, errs.NotFound.Errorf("process %d is not in %s: %w", pid, group, closed(pidfd))
	}
	return pidfd, nil
}

func closed(f *os.File) error {
	_ = f.Close()
	return unix.ESRCH
}

// findPod takes hold of a pod's namespaces: the network's by its path, the others by the process of a container.
func (p *Pool) findPod(pod OrphanPod, via *containerEntry) (*podEntry, error) {
	e := &podEntry{ns: map[string]*os.File{}, order: pod.Kinds}
	for _, kind := range pod.Kinds {
		path := fmt.Sprintf("/proc/%d/ns/%s", via.pid, kind)
		if kind == "net" {
			path = pod.Net
		}
		if kind == "pid" {
			if err := p.findInit(pod.Group, e); err != nil {
				e.close()
				return nil, err
			}
			path = fmt.Sprintf("/proc/%d/ns/pid", e.initPid)
		}
		ns, err := openNamespace(path)
		if err == nil && kind == "user" {
			ns, err = outermost(ns)
		}
		if err != nil {
			e.close()
			return nil, errs.FailedPrecondition.Errorf("pod %s, namespace %s: %w", pod.ID, kind, err)
		}
		e.ns[kind] = ns
	}
	if readable(via.handles[v1.HandlePidfd]) || e.init != nil && readable(e.init) { // the pids may be others' by now
		e.close()
		return nil, errs.FailedPrecondition.Errorf("pod %s ended while its namespaces were opened", pod.ID)
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

func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path) //nolint:gosec // of a process of ours, or a path of ours
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s is no namespace: %w", path, closed(f))
	}
	return f, nil
}

// outermost is the pod's own user namespace: the container's process may have made others within.
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

// entrust gives containers to their pod's shim, or them and the pod to some shim. What is one of the pool's is given to a
// shim's successor as well, should it die meanwhile.
func (p *Pool) entrust(ctx context.Context, pod OrphanPod, via *containerEntry, containers map[string]*containerEntry) error {
	p.mu.Lock()
	e := p.pods[pod.ID]
	p.mu.Unlock()
	held := e != nil
	if !held {
		var err error
		if e, err = p.findPod(pod, via); err != nil {
			return err
		}
	}
	s, err := p.assign(ctx, pod.ID, e, containers)
	if err != nil {
		if !held {
			e.close()
		}
		return err
	}
	defer s.life.RUnlock()
	if !held {
		err = s.adoptPod(ctx, pod.ID, e)
	}
	for _, c := range containers {
		if err == nil {
			err = s.adoptContainer(ctx, c)
		}
	}
	if err == nil || errors.Is(err, errs.Unavailable) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !held {
		e.close()
		delete(p.pods, pod.ID)
	}
	for cid := range containers {
		delete(p.containers, cid)
	}
	return fmt.Errorf("shim %s: %w", s.id, err)
}

// assign makes a pod one of some shim's, if it is nobody's, and containers that shim's, which cannot be replaced until the
// caller lets go of its life.
func (p *Pool) assign(ctx context.Context, id string, e *podEntry, containers map[string]*containerEntry) (*shim, error) {
	for ctx.Err() == nil {
		s := e.shim
		if s == nil {
			var err error
			if s, err = p.place(ctx); err != nil {
				return nil, err
			}
		}
		s.life.RLock()
		p.mu.Lock()
		if e.shim == nil {
			s.reserved--
		}
		if p.shims[s.id] != s { // it was killed, and had nothing to be replaced for
			p.mu.Unlock()
			s.life.RUnlock()
			continue
		}
		e.shim, p.pods[id] = s, e
		for cid, c := range containers {
			c.shim, p.containers[cid] = s, c
		}
		p.mu.Unlock()
		return s, nil
	}
	return nil, ctx.Err()
}

// inodes are those of a container's output.
func inodes(names []string, fds []*os.File) map[string]uint64 {
	all := map[string]uint64{}
	for name, f := range byName(names, fds) {
		var st unix.Stat_t
		if (name == v1.HandleStdout || name == v1.HandleStderr) && unix.Fstat(int(f.Fd()), &st) == nil {
			all[name] = st.Ino
		}
	}
	return all
}

// findPipes opens, for reading, the pipes that processes have open, by inode. What nobody has open any more is not there.
func findPipes(pids []int, want map[string]uint64) map[string]*os.File {
	found := map[string]*os.File{}
	names := map[string]string{}
	for name, inode := range want {
		names[fmt.Sprintf("pipe:[%d]", inode)] = name
	}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		ents, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		slices.SortFunc(ents, func(a, b os.DirEntry) int { return number(a) - number(b) }) // 1 and 2, as a rule
		for _, ent := range ents {
			path := filepath.Join(dir, ent.Name())
			to, err := os.Readlink(path)
			name := names[to]
			if err != nil || name == "" || found[name] != nil {
				continue
			}
			if f, err := openPipe(path, want[name]); err == nil { // else it was closed in between
				found[name] = f
			}
			if len(found) == len(want) {
				return found
			}
		}
	}
	return found
}

func number(ent os.DirEntry) int {
	n, _ := strconv.Atoi(ent.Name()) // what is no number comes first
	return n
}

// openPipe opens a pipe by a process's descriptor, which may be another file by now: so it is looked at first, by a
// descriptor that has opened nothing.
func openPipe(path string, inode uint64) (*os.File, error) {
	at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at) //nolint:errcheck // it has opened nothing
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(at, &st); err != nil {
		return nil, err
	}
	if err := unix.Fstatfs(at, &fs); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Ino != inode || fs.Type != unix.PIPEFS_MAGIC {
		return nil, unix.ENOENT
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // without a writer it would wait
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, false); err != nil { // as the one that is lost was
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}
