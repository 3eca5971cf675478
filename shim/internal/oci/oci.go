// Package oci runs containers by a program with runc's command line (runc, crun, runsc, kata-runtime), behind the
// same port as the shim's own executor. It writes config.json and mounts the rootfs into a bundle directory, then
// calls create, start, exec and delete. The program is started through package launch, like everything else.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
	"github.com/berth-project/berth/shim/internal/launch"
	"github.com/berth-project/berth/shim/internal/reap"
)

// Runtime starts containers by an OCI program. Use New.
type Runtime struct {
	launcher *launch.Launcher
	reaper   *reap.Reaper
	mnt      *os.File // the host's mount namespace
	null     *os.File
}

// New makes a runtime on a running launcher.
func New(l *launch.Launcher, r *reap.Reaper) (*Runtime, error) {
	mnt, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &Runtime{launcher: l, reaper: r, mnt: mnt, null: null}, nil
}

// Container is a container of an OCI program.
type Container struct {
	r   *Runtime
	id  string
	oci v1.OCIRuntime
}

// Adopt gives the Container of one that an earlier shim started.
func (r *Runtime) Adopt(id string, o *v1.OCIRuntime) *Container {
	return &Container{r: r, id: id, oci: *o}
}

// Start runs create and start. On an error nothing is left.
func (r *Runtime) Start(ctx context.Context, s *executor.Start, o *v1.OCIRuntime) (_ *executor.Process, _ *Container, err error) {
	if err := checkBinary(o.Binary); err != nil {
		return nil, nil, err
	}
	c := &Container{r: r, id: s.ID, oci: *o}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Remove(context.WithoutCancel(ctx)))
		}
	}()
	// 1. the bundle
	if err := c.bundle(s); err != nil {
		return nil, nil, err
	}
	// 2. create, which leaves the container's first process waiting
	args := []string{"create", "--bundle", o.Bundle, "--pid-file", c.path("pid")}
	stdio, err := files(s.Stdio, s.Spec.Process.Terminal)
	if err != nil {
		return nil, nil, err
	}
	defer closeFiles(stdio)
	p, err := c.call(ctx, args, stdio, s.Spec.Process.Terminal)
	if err != nil {
		return nil, nil, err
	}
	// 3. start
	if err := r.do(ctx, c.command([]string{"start", c.id})); err != nil {
		_ = p.Pidfd.Close()
		if p.Console != nil {
			_ = p.Console.Close()
		}
		return nil, nil, err
	}
	return p, c, nil
}

// Exec runs exec.
func (c *Container) Exec(ctx context.Context, x *executor.Exec) (*executor.Process, error) {
	f, err := os.CreateTemp(c.oci.Bundle, "exec-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // goes with the bundle at last
	err = json.NewEncoder(f).Encode(x.Process)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	pid := f.Name() + ".pid"
	defer os.Remove(pid) //nolint:errcheck // as above
	stdio, err := files(x.Stdio, x.Process.Terminal)
	if err != nil {
		return nil, err
	}
	defer closeFiles(stdio)
	return c.call(ctx, []string{"exec", "--detach", "--process", f.Name(), "--pid-file", pid}, stdio, x.Process.Terminal)
}

// Remove removes the container, its mount and its bundle.
func (c *Container) Remove(ctx context.Context) error {
	if _, err := os.Stat(c.oci.Bundle); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	deleted := c.r.do(ctx, c.command([]string{"delete", "--force", c.id}))
	rootfs := c.path("rootfs")
	if err := unix.Unmount(rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", rootfs, err)
	}
	// only now: a rootfs that is still mounted must not be emptied
	if err := os.RemoveAll(c.oci.Bundle); err != nil {
		return err
	}
	return deleted
}

func (c *Container) path(name string) string { return filepath.Join(c.oci.Bundle, name) }

// command puts the global options in front.
func (c *Container) command(args []string) *command {
	global := []string{"--root", c.oci.Root, "--log", c.path("log"), "--log-format", "json"}
	return &command{path: c.oci.Binary, args: append(append(global, c.oci.Args...), args...), log: c.path("log")}
}

// call runs create or exec and returns the process it leaves behind, which is this shim's child as an orphan.
func (c *Container) call(ctx context.Context, args []string, stdio [3]*os.File, terminal bool) (*executor.Process, error) {
	p := &executor.Process{}
	var console *consoleSocket
	if terminal {
		var err error
		if console, err = listenConsole(c.oci.Bundle); err != nil {
			return nil, err
		}
		defer console.close()
		args = append(args, "--console-socket", console.path)
	}
	cmd := c.command(append(args, c.id))
	cmd.stdio = stdio
	child, err := c.r.run(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer child.Pidfd.Close() //nolint:errcheck // the program's own
	if console != nil {
		if p.Console, err = console.receive(); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(args[pidFileAt(args)])
	if err == nil {
		p.Pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return nil, fmt.Errorf("pid file: %w", err)
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) { // it has ended already: the program's pidfd, which has ended too, stands for it
		fd, err = unix.FcntlInt(child.Pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", p.Pid, err)
	}
	p.Pidfd = os.NewFile(uintptr(fd), "pidfd") //nolint:gosec // a descriptor
	p.Proc = c.r.reaper.Adopt(p.Pid, nil)
	return p, nil
}

func pidFileAt(args []string) int {
	for i, a := range args {
		if a == "--pid-file" {
			return i + 1
		}
	}
	return len(args) - 1
}

// files wraps descriptors that stay the caller's.
func files(stdio executor.Stdio, terminal bool) (out [3]*os.File, err error) {
	if terminal {
		return out, nil
	}
	for i, fd := range stdio {
		if fd < 0 {
			continue // run gives it the null device
		}
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) //nolint:gosec // a descriptor
		if err != nil {
			return out, err
		}
		out[i] = os.NewFile(uintptr(n), "stdio") //nolint:gosec // a descriptor
	}
	return out, nil
}

func closeFiles(stdio [3]*os.File) {
	for _, f := range stdio {
		if f != nil {
			_ = f.Close()
		}
	}
}

// bundle makes the bundle directory: the mounted rootfs and config.json.
func (c *Container) bundle(s *executor.Start) error {
	rootfs := c.path("rootfs")
	if err := os.MkdirAll(rootfs, 0o700); err != nil {
		return err
	}
	if len(s.Spec.Linux.UIDMappings) > 0 { // the program's init, as the mapped root, walks through it
		if err := errors.Join(os.Chmod(filepath.Dir(c.oci.Bundle), 0o711), os.Chmod(c.oci.Bundle, 0o711), os.Chmod(rootfs, 0o711)); err != nil { //nolint:gosec // search only
			return err
		}
	}
	if err := executor.MountRootfs(&s.Rootfs, s.Spec, s.Join, rootfs); err != nil {
		return err
	}
	spec, err := merge(s, rootfs)
	if err != nil {
		return err
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("config.json"), b, 0o600)
}

// merge is the spec as the program wants it: namespaces to join as paths, the seccomp profile in place.
func merge(s *executor.Start, rootfs string) (*specs.Spec, error) {
	spec, linux := *s.Spec, *s.Spec.Linux
	spec.Linux = &linux
	root := specs.Root{Path: rootfs}
	if spec.Root != nil {
		root.Readonly = spec.Root.Readonly
	}
	spec.Root = &root
	linux.Namespaces = nil
	for _, ns := range s.Spec.Linux.Namespaces {
		kind := executor.NamespaceKind(ns.Type)
		if fd, ok := s.Join[kind]; ok {
			ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
			if kind == "user" { // it has its maps: runtimes refuse to be told twice
				linux.UIDMappings, linux.GIDMappings = nil, nil
			}
		}
		if kind == "pid" && s.PidOf >= 0 {
			return nil, errs.Unimplemented.Errorf("an OCI runtime can not enter another container's pid namespace")
		}
		linux.Namespaces = append(linux.Namespaces, ns)
	}
	spec.Mounts = mounts(s.Spec)
	if s.Filter != nil {
		linux.Seccomp = &specs.LinuxSeccomp{}
		if err := json.Unmarshal(s.Filter.Profile, linux.Seccomp); err != nil {
			return nil, err
		}
	}
	return &spec, nil
}

// mounts binds the host's /sys where a sysfs cannot be mounted: only who owns a network namespace may mount the one that
// shows it, and a user namespace on the host's network owns none.
func mounts(s *specs.Spec) []specs.Mount {
	has := func(kind specs.LinuxNamespaceType) bool {
		return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
	}
	if !has(specs.UserNamespace) || has(specs.NetworkNamespace) {
		return s.Mounts
	}
	all := slices.Clone(s.Mounts)
	for i, m := range all {
		if m.Type == "sysfs" {
			all[i].Type, all[i].Source, all[i].Options = "bind", "/sys", append([]string{"rbind"}, m.Options...)
		}
	}
	return all
}
