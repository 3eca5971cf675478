package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/failpoint"
)

// hold is the group below a scope in which its holder sleeps: a group with controllers for its children may have no
// process of its own (cgroup-v2.rst, "No Internal Process Constraint").
const hold = "/hold"

// Ensure makes a scope and sees that it stays until Remove. It costs one read if all is well.
//
//	starter                      systemd                  holder
//	   │ sleeps on a pipe           │
//	   │ ◀── StartTransientUnit(starter), moves it ──▶ scope
//	   │                            │                     born into scope/hold, sleeps
//	   └ the pipe is closed: ends   │
//
// Only the starter is moved, which costs the kernel's RCU wait once, and systemd's job hides it. A daemon that dies before
// the holder is born takes the starter with it, because the pipe closes: then systemd forgets the scope. One that dies
// later leaves a scope with a holder, for a pod that is recorded: its teardown removes it.
func (m *Manager) Ensure(ctx context.Context, s Scope) error {
	group, err := s.Path()
	if err != nil {
		return err
	}
	lock := m.lock(s.Unit)
	lock.Lock()
	defer lock.Unlock()
	if m.populated(group + hold) {
		return nil
	}
	if err := m.ensure(ctx, s, group); err != nil {
		return fmt.Errorf("scope %s: %w", s.Unit, err)
	}
	return nil
}

var (
	failStarter = failpoint.New("systemd.after_starter")
	failScope   = failpoint.New("systemd.after_scope")
	failHolder  = failpoint.New("systemd.after_holder")
	failKilled  = failpoint.New("systemd.after_kill")
)

func (m *Manager) ensure(ctx context.Context, s Scope, group string) error {
	image, err := holder()
	if err != nil {
		return err
	}
	defer image.Close()      //nolint:errcheck // a memfd
	if !m.populated(group) { // else its holder was killed, but containers run in it
		starter, err := run(image, s.Description, -1, false)
		if err != nil {
			return err
		}
		defer starter.end()
		if err := failStarter.Hit(); err != nil {
			return err
		}
		if err := errors.Join(m.start(ctx, s, starter.pid(), group), failScope.Hit()); err != nil {
			return err
		}
	}
	if err := m.groups.EnsureExec(group + hold); err != nil {
		return err
	}
	dir, err := os.Open(m.groups.Unified + group + hold)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // a directory
	held, err := run(image, s.Description, int(dir.Fd()), true)
	if err != nil {
		return err
	}
	go func() { _ = held.cmd.Wait() }() //nolint:gocritic // reaps; it outlives the daemon
	return failHolder.Hit()
}

// populated says whether there is a process in a group or below it.
func (m *Manager) populated(group string) bool {
	b, err := os.ReadFile(m.groups.Unified + group + "/cgroup.events")
	return err == nil && strings.Contains(string(b), "populated 1")
}

// sleeper is a process of the holder's program.
type sleeper struct {
	cmd  *exec.Cmd
	pipe io.Closer
}

func (s *sleeper) pid() int { return s.cmd.Process.Pid }

// end closes the pipe of one that waits for it, and waits for its end.
func (s *sleeper) end() {
	_ = s.pipe.Close()
	_ = s.cmd.Wait() // its exit code is always 0
}

// run starts the holder's program: to sleep for good, or until end. group is a descriptor of the unified group that it is
// born into, or -1. description is what ps shows.
func run(image *os.File, description string, group int, good bool) (*sleeper, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // the child has it
	cmd := &exec.Cmd{
		Path: fmt.Sprintf("/proc/self/fd/%d", image.Fd()), Args: []string{"berth: " + description}, Env: []string{}, Dir: "/", Stdin: r,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: group >= 0, CgroupFD: max(group, 0)},
	}
	if good {
		if _, err := w.Write([]byte{0}); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the holder: %w", err), w.Close())
	}
	s := &sleeper{cmd: cmd, pipe: w}
	if good {
		return s, w.Close()
	}
	return s, nil
}

// holder makes the program in a sealed memfd. The caller closes it.
func holder() (*os.File, error) {
	elf, err := program()
	if err != nil {
		return nil, err
	}
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("berth-hold", flags|unix.MFD_EXEC)
	if err != nil { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("berth-hold", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "berth-hold") //nolint:gosec // a descriptor
	_, err = f.Write(elf)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the holder's program: %w", err), f.Close())
	}
	return f, nil
}
