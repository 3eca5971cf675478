package mps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Verb is the argument with which Self is called to become a daemon.
const Verb = "mps-daemon"

// serve runs one daemon until it dies, does not answer, or ctx ends.
func (s *Supervisor) serve(ctx context.Context, g GPU) error {
	dir, err := s.ensure(g.UUID)
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.cfg.Control); err != nil {
		return errs.FailedPrecondition.Errorf("%w: MPS needs the driver's own program", err)
	}
	cmd := exec.Command(s.cfg.Self, Verb, s.cfg.Control, dir)
	cmd.Env = s.environment(dir, g.UUID)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Setpgid: true, Pdeathsig: unix.SIGKILL}
	var words tail
	cmd.Stdout, cmd.Stderr = &words, &words
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err = s.watch(ctx, g, dir, ended)
	// the daemon and the servers it started are one process group
	if kerr := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
		err = errors.Join(err, kerr)
	}
	select {
	case <-ended: //nolint:errcheck // it was killed: its status says nothing
	case <-time.After(5 * time.Second): // stuck in the driver
		return err
	}
	if err != nil && words.String() != "" {
		err = fmt.Errorf("%w: %s", err, words.String())
	}
	return err
}

// watch configures the daemon as soon as it answers, and asks it ever after.
func (s *Supervisor) watch(ctx context.Context, g GPU, dir string, ended chan error) error {
	limits := []string{
		fmt.Sprintf("set_default_device_pinned_mem_limit 0 %dM", g.Memory>>20),
		fmt.Sprintf("set_default_active_thread_percentage %d", max(100/g.Replicas, 1)),
	}
	failed, configured := 0, false
	for {
		var err error
		if !configured {
			err = s.tell(ctx, dir, g.UUID, limits...)
			configured = err == nil
		} else {
			err = s.tell(ctx, dir, g.UUID, "get_default_active_thread_percentage")
		}
		if err == nil {
			failed = 0
			s.note(g.UUID, nil)
		} else if failed++; failed >= 3 {
			return errs.Unavailable.Errorf("the MPS daemon does not answer: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- err
			return errs.Unavailable.Errorf("the MPS daemon ended: %w", errors.Join(err, errors.New("it serves no more")))
		case <-time.After(s.cfg.Check):
		}
	}
}

func (s *Supervisor) environment(dir, uuid string) []string {
	env := []string{
		"PATH=/usr/bin:/bin:" + filepath.Dir(s.cfg.Control), "CUDA_VISIBLE_DEVICES=" + uuid,
		"CUDA_MPS_PIPE_DIRECTORY=" + filepath.Join(dir, "pipe"), "CUDA_MPS_LOG_DIRECTORY=" + filepath.Join(dir, "log"),
	}
	if s.cfg.Libraries != "" {
		env = append(env, "LD_LIBRARY_PATH="+s.cfg.Libraries)
	}
	return env
}

// tell gives a running daemon commands by its own program's standard input.
func (s *Supervisor) tell(ctx context.Context, dir, uuid string, commands ...string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Answer)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.cfg.Control)
	cmd.Env, cmd.WaitDelay = s.environment(dir, uuid), time.Second
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w %s", commands[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// Become turns this process, which has a mount namespace of its own, into the daemon: its /dev/shm is the one in
// dir. Its sockets are for clients of any user, so that its umask is the usual one, whatever ours is. It returns only on
// failure.
func Become(control, dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	shm := filepath.Join(dir, "shm")
	if err := unix.Mount(shm, "/dev/shm", "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind to /dev/shm", Path: shm, Err: err}
	}
	unix.Umask(0o022)
	return &os.PathError{Op: "exec", Path: control, Err: unix.Exec(control, []string{control, "-f"}, os.Environ())}
}

// tail keeps the end of what a daemon says.
type tail struct{ b []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-512):]
	return len(p), nil
}

// String is the end, on one line.
func (t *tail) String() string { return strings.Join(strings.Fields(string(t.b)), " ") }
