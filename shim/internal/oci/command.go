package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/launch"
	"github.com/berth-project/berth/shim/internal/plan"
	"github.com/berth-project/berth/shim/internal/reap"
)

// command is one run of the runtime's program.
type command struct {
	path  string
	args  []string // without the program's name
	stdio [3]*os.File
	log   string // the runtime's --log file, for the error's text
}

// run starts the program through the launcher and waits for its end. The program runs in the host's mount namespace.
func (r *Runtime) run(ctx context.Context, c *command) (*launch.Child, error) {
	p := plan.New(8)
	p.Add(plan.Call("enter the host's mount namespace", unix.SYS_SETNS, plan.F(int(r.mnt.Fd()), "mnt"), plan.I(unix.CLONE_NEWNS)),
		plan.UnblockSignals())
	for i, f := range c.stdio {
		if f == nil {
			f = r.null
		}
		p.Add(plan.Call("set up stdio", unix.SYS_DUP3, plan.F(int(f.Fd()), "stdio"), plan.I(i), plan.I(0)))
	}
	p.Add(plan.Call("close the rest", unix.SYS_CLOSE_RANGE, plan.I(3), plan.I(^uint32(0)), plan.I(unix.CLOSE_RANGE_CLOEXEC)),
		plan.Execve(c.path, append([]string{c.path}, c.args...), []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}))
	child, err := r.launcher.Launch(ctx, &launch.Request{Plan: p, Cgroup: -1, PidNS: -1})
	if err != nil {
		return nil, err
	}
	if err := child.Wait(ctx); err != nil {
		return nil, err
	}
	select {
	case <-child.Process().Done():
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), child.Abort())
	}
	if st := child.Process().Status(); st != (reap.Status{At: st.At}) {
		_ = child.Pidfd.Close()
		return nil, fmt.Errorf("%s %s: exit %d, signal %d: %s", filepath.Base(c.path), strings.Join(c.args, " "), st.Code, st.Signal, lastLine(c.log))
	}
	return child, nil
}

// do is run for commands whose process is of no further interest.
func (r *Runtime) do(ctx context.Context, c *command) error {
	child, err := r.run(ctx, c)
	if err != nil {
		return err
	}
	return child.Pidfd.Close()
}

// lastLine is the last thing the runtime logged.
func lastLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "it left no log"
	}
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}

// checkBinary refuses what is not an absolute path: it comes from the daemon's configuration alone.
func checkBinary(path string) error {
	if !filepath.IsAbs(path) {
		return errs.InvalidArgument.Errorf("the runtime's program %q is not an absolute path", path)
	}
	return nil
}
