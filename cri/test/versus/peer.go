package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is an OCI program, called as containerd's shim calls it.
type peer struct {
	c      config
	b      *bundle
	root   string
	joined map[string]string // namespaces of the pod, by kind
	open   []*os.File        // what the paths in joined lead to, until this process ends
	null   *os.File
}

// newPeer lets the peer's containers enter the pod's namespaces, which this process holds open for it.
func newPeer(c config, b *bundle, o *own) (*peer, error) {
	p := &peer{c: c, b: b, root: filepath.Join(c.work, "peer-root"), joined: map[string]string{}}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("subreaper: %w", err)
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		f, err := o.pool.Namespace(pod, kind)
		if err != nil {
			return nil, err
		}
		p.open = append(p.open, f)
		p.joined[kind] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	}
	var err error
	p.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	return p, err
}

// life implements side.
func (p *peer) life(ctx context.Context, number int, s *steps) error {
	id := fmt.Sprintf("peer-%d", number)
	dir := filepath.Join(p.b.dir, "peer", id)
	sp, _, err := p.b.spec(id, p.c.group+"/peer/"+id)
	if err != nil {
		return err
	}
	if err := p.b.write(dir, sp, p.joined); err != nil {
		return err
	}
	pidFile := filepath.Join(dir, "pid")
	if err := timed(&s.Create, func() error { return p.call(ctx, dir, "create", "--bundle", dir, "--pid-file", pidFile, id) }); err != nil {
		return err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := timed(&s.Start, func() error { return p.call(ctx, dir, "start", id) }); err != nil {
		return err
	}
	if err := reap(pid); err != nil {
		return err
	}
	err = timed(&s.Delete, func() error { return p.call(ctx, dir, "delete", id) })
	return errors.Join(err, os.RemoveAll(dir))
}

// call runs the program; its last words are in a log, as containerd's shim has it.
func (p *peer) call(ctx context.Context, dir string, args ...string) error {
	log := filepath.Join(dir, "log.json")
	cmd := exec.CommandContext(ctx, p.c.peer, append([]string{"--root", p.root, "--log", log, "--log-format", "json"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.null, p.null, p.null
	if err := cmd.Run(); err != nil {
		said, rerr := os.ReadFile(log)
		return errors.Join(fmt.Errorf("%s %s: %w: %s", p.c.peer, args[0], err, said), rerr)
	}
	return nil
}

// reap waits for the container's process, which its runtime left to this one, and wants it to have ended with 0.
func reap(pid int) error {
	var st unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &st, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for %d: %w", pid, err)
		}
		if st.ExitStatus() != 0 {
			return fmt.Errorf("the container's process ended with %d (status %#x)", st.ExitStatus(), st)
		}
		return nil
	}
}
