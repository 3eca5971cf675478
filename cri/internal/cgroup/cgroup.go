// Package cgroup makes, limits, kills, measures and removes control groups on a pure v2 hierarchy, or on v1
// controllers with a unified tree beside them (the hybrid layout), by their files alone (the cgroupfs driver).
//
// A group is named by its path below the hierarchies' roots, as the kubelet writes it ("/kubepods/pod1/abc").
// On the hybrid layout one group in the unified tree stands beside the v1 ones, for cgroup.kill, events and PSI.
// The package must not import any other package of the daemon.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Layout is where the hierarchies of this machine are mounted.
type Layout struct {
	// Unified is the v2 mount point, or "".
	Unified string
	// V2 says that the resource controllers are on Unified.
	V2 bool
	// V1 maps a controller to its mount point; empty on pure v2. "name=systemd" is among them if mounted.
	V1 map[string]string
}

// Detect reads /proc/self/mountinfo and /sys/fs/cgroup.
func Detect() (*Layout, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	l := parse(b)
	if l.Unified != "" {
		ctrl, err := os.ReadFile(filepath.Join(l.Unified, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		l.V2 = slices.Contains(strings.Fields(string(ctrl)), "memory")
	}
	if !l.V2 && l.V1["memory"] == "" {
		return nil, errs.FailedPrecondition.Errorf("no memory cgroup controller is mounted, neither v1 nor v2: mount cgroup2 on /sys/fs/cgroup")
	}
	if l.V2 {
		l.V1 = nil
	}
	return l, nil
}

func parse(mountinfo []byte) *Layout {
	l := &Layout{V1: map[string]string{}}
	sc := bufio.NewScanner(bytes.NewReader(mountinfo))
	for sc.Scan() {
		pre, post, ok := strings.Cut(sc.Text(), " - ")
		f, p := strings.Fields(pre), strings.Fields(post)
		if !ok || len(f) < 5 || len(p) < 3 || f[3] != "/" {
			continue
		}
		switch p[0] {
		case "cgroup2":
			if l.Unified == "" {
				l.Unified = f[4]
			}
		case "cgroup":
			for opt := range strings.SplitSeq(p[2], ",") {
				if opt != "rw" && opt != "ro" && opt != "xattr" && opt != "clone_children" && opt != "favordynmods" {
					l.V1[opt] = f[4]
				}
			}
		}
	}
	return l
}

// mounts are the distinct mount points of all hierarchies.
func (l *Layout) mounts() []string {
	var all []string
	for _, m := range l.V1 {
		all = append(all, m)
	}
	if l.Unified != "" {
		all = append(all, l.Unified)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Clean checks a group path that came from outside and returns it without dots and double slashes.
func Clean(path string) (string, error) {
	if strings.ContainsAny(path, "\x00\n") {
		return "", errs.InvalidArgument.Errorf("cgroup path %q holds a control character", path)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			return "", errs.InvalidArgument.Errorf("cgroup path %q leaves the hierarchy", path)
		}
	}
	return filepath.Clean("/" + path), nil
}

// Ensure makes the group in every hierarchy, parents included.
func (l *Layout) Ensure(path string) error {
	for _, m := range l.mounts() {
		if err := l.ensureIn(m, path); err != nil {
			return fmt.Errorf("cgroup %s: %w", path, err)
		}
	}
	return nil
}

func (l *Layout) ensureIn(mount, path string) error {
	dir := mount + path
	err := os.Mkdir(dir, 0o755) //nolint:gosec // cgroups are world-readable
	if errors.Is(err, fs.ErrNotExist) {
		if err := l.ensureIn(mount, filepath.Dir(path)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755) //nolint:gosec // as above
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	switch mount {
	case l.V1["cpuset"]:
		return inheritCpuset(mount, path)
	case l.Unified:
		return delegate(mount, path)
	}
	return nil
}

// inheritCpuset fills the cpus and mems of a v1 cpuset, without which no task can enter it.
func inheritCpuset(mount, path string) error {
	if path == "/" {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own := filepath.Join(mount, path, file)
		have, err := read(own)
		if err != nil {
			return err
		}
		if have != "" {
			continue
		}
		parent := filepath.Dir(path)
		from, err := read(filepath.Join(mount, parent, file))
		if err != nil {
			return err
		}
		if from == "" {
			if err := inheritCpuset(mount, parent); err != nil {
				return err
			}
			if from, err = read(filepath.Join(mount, parent, file)); err != nil {
				return err
			}
		}
		if err := write(own, from); err != nil {
			return err
		}
	}
	return nil
}

// delegate enables, in the parent of path, every controller the parent has for its children (v2). A parent with
// processes of its own refuses (the no-internal-process rule); then the children simply do without, as the
// kubelet's own cgroups do.
func delegate(mount, path string) error {
	if path == "/" {
		return nil
	}
	parent := filepath.Join(mount, filepath.Dir(path))
	have, err := read(filepath.Join(parent, "cgroup.controllers"))
	if err != nil || have == "" {
		return err
	}
	on, err := read(filepath.Join(parent, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	enabled := strings.Fields(on)
	for c := range strings.FieldsSeq(have) {
		if slices.Contains(enabled, c) {
			continue
		}
		err := write(filepath.Join(parent, "cgroup.subtree_control"), "+"+c)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// Handles are open descriptors by which a process is started inside a group.
type Handles struct {
	Unified *os.File   // directory in the unified tree, or nil
	Tasks   []*os.File // `tasks` of each v1 hierarchy, for writing
}

// Files lists the descriptors in the order that proto/shim/v1 wants.
func (h *Handles) Files() []*os.File {
	if h.Unified == nil {
		return h.Tasks
	}
	return append([]*os.File{h.Unified}, h.Tasks...)
}

// Close closes all of them.
func (h *Handles) Close() {
	for _, f := range h.Files() {
		_ = f.Close()
	}
}

// Open opens the group for starting processes in it. unified is the group in the unified tree, usually path
// itself; an exec has a child group of its own there, so that it can be killed alone.
func (l *Layout) Open(path, unified string) (h *Handles, err error) {
	h = &Handles{}
	defer func() {
		if err != nil {
			h.Close()
			h = nil
		}
	}()
	if l.Unified != "" {
		if h.Unified, err = openRaw(l.Unified+unified, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return h, err
		}
	}
	for _, m := range l.mounts() {
		if m == l.Unified {
			continue
		}
		f, err := openRaw(m+path+"/tasks", unix.O_WRONLY)
		if err != nil {
			return h, err
		}
		h.Tasks = append(h.Tasks, f)
	}
	return h, nil
}

// Kill ends every process of the group and of the groups below it (cgroup.kill, Linux 5.14). A group that is
// gone is fine.
func (l *Layout) Kill(path string) error {
	if l.Unified != "" {
		err := write(l.Unified+path+"/cgroup.kill", "1")
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, pid := range l.Pids(path) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// Pids are the processes of the group and of those below it.
func (l *Layout) Pids(path string) []int {
	root := l.Unified
	if root == "" {
		root = l.V1["memory"]
	}
	var pids []int
	_ = filepath.WalkDir(root+path, func(p string, d fs.DirEntry, err error) error { // a group that vanishes has none
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // as above
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs")) //nolint:gosec // below the mount
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		for _, s := range strings.Fields(string(b)) {
			var pid int
			if _, err := fmt.Sscan(s, &pid); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// Remove removes the group and those below it from every hierarchy. Processes that are on their way out are
// waited for, up to a second; then the group stays and the error says so.
func (l *Layout) Remove(path string) error {
	if path == "" || path == "/" {
		return errs.InvalidArgument.Errorf("refusing to remove the root cgroup")
	}
	var all []error
	for _, m := range l.mounts() {
		if err := removeTree(m + path); err != nil {
			all = append(all, fmt.Errorf("cgroup %s: %w", path, err))
		}
	}
	return errors.Join(all...)
}

func removeTree(dir string) error {
	deadline := time.Now().Add(time.Second)
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if ents, rerr := os.ReadDir(dir); rerr == nil {
			for _, e := range ents {
				if e.IsDir() {
					if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
						return err
					}
				}
			}
			if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(wait)
	}
}

// Move puts a running process into the group, in the v1 hierarchies; on the unified one it was born there.
func (l *Layout) Move(path string, pid int) error {
	for _, m := range l.mounts() {
		if m == l.Unified {
			continue
		}
		if err := write(m+path+"/cgroup.procs", fmt.Sprint(pid)); err != nil {
			return fmt.Errorf("cgroup %s: %w", path, err)
		}
	}
	return nil
}
