// Package harness starts what the end-to-end tests and the demo need — a registry, berth-cri, containerd, a real
// kubelet — in directories of their own, waits until each answers, and stops them so that nothing is left.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program started in the background. Its output is in a log file, its pid in a pid file, so that
// another process can stop it.
type Process struct {
	Name, Log, PidFile string
	cmd                *exec.Cmd
	done               chan struct{}
}

// Start runs argv with its output in dir/NAME.log, in a session of its own.
func Start(dir, name string, env []string, argv ...string) (*Process, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), PidFile: filepath.Join(dir, name+".pid"), done: make(chan struct{})}
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the process has it
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = out, out, "/"
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	return p, os.WriteFile(p.PidFile, []byte(strconv.Itoa(p.cmd.Process.Pid)), 0o644)
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends it with SIGKILL and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop ends it with SIGTERM, after ten seconds with SIGKILL, and removes the pid file.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Kill()
		return errors.Join(fmt.Errorf("%s did not stop, it was killed; see %s", p.Name, p.Log), os.Remove(p.PidFile))
	}
	return os.Remove(p.PidFile)
}

// Tail is the end of the log, for messages.
func (p *Process) Tail(lines int) string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// StopByPidFile stops a process that another one started. The pid file's process must be called like its name
// says; one that is not there is fine.
func StopByPidFile(file string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	want := strings.TrimSuffix(filepath.Base(file), ".pid")
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || !strings.HasPrefix(want, strings.TrimSpace(string(comm))) { // comm is cut at 15 bytes
		return os.Remove(file)
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	_ = proc.Signal(syscall.SIGTERM)
	for range 100 {
		if proc.Signal(syscall.Signal(0)) != nil {
			return os.Remove(file)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(proc.Kill(), os.Remove(file))
}

// Until calls try every step until it succeeds, ctx ends, or p (which may be nil) does; the error is the last one.
func Until(ctx context.Context, step time.Duration, p *Process, try func() error) error {
	var dead <-chan struct{}
	if p != nil {
		dead = p.Done()
	}
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", ctx.Err(), err)
		case <-dead:
			return fmt.Errorf("%s ended: %w; the end of its log:\n%s", p.Name, err, p.Tail(15))
		case <-time.After(step):
		}
	}
}

// StartTime is when a process started, in clock ticks after boot: with the pid it names a process for ever.
func StartTime(pid int) (uint64, error) { return stat(pid, 22) }

// Parent is the pid of a process's parent.
func Parent(pid int) (int, error) {
	n, err := stat(pid, 4)
	return int(n), err //nolint:gosec // a pid
}

// stat is a number of /proc/PID/stat, by its field in proc(5), from 4 on.
func stat(pid, field int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // the third field is f[0]
	if len(f) <= field-3 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	return strconv.ParseUint(f[field-3], 10, 64)
}

// ExitCode is the exit code of a process that has ended, -1 if a signal ended it.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}
