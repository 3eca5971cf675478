package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

const (
	// execOutputLimit bounds what ExecSync keeps of each stream; the rest is read and dropped (CVE-2022-1708).
	execOutputLimit = 16 << 20
	// drainLimit is how long output is still read after the process itself has ended, when something it left
	// behind holds the pipe open.
	drainLimit = 250 * time.Millisecond
	// answerSlack is how much longer an exec's start is waited for than its supervisor gives it: it has to see the
	// process die, or not die.
	answerSlack = 5 * time.Second
)

// running is an exec and what must be undone at its end.
type running struct {
	*shims.Process
	group  string // its own group in the unified tree
	layout *cgroup.Layout
	in     *Container
}

// close forgets the exec. Its group stays while something it left behind runs there: later execs of the container look again,
// and its end takes both.
func (r *running) close() {
	r.Process.Close()
	r.in.leave(r.group, r.layout.RemoveExec)
}

// leave removes the groups of execs that have ended, those too which could not be removed before.
func (c *Container) leave(group string, remove func(group string) error) {
	c.mu.Lock()
	all := append(c.left, group)
	c.left = nil
	c.mu.Unlock()
	all = slices.DeleteFunc(all, func(g string) bool { return remove(g) == nil }) // busy: see above
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, all...)
}

// killAll ends the process and everything it started.
func (r *running) killAll() error {
	return errors.Join(r.Signal(unix.SIGKILL), r.layout.KillExec(r.group))
}

// command is what is to run in a container.
type command struct {
	args  []string
	tty   bool
	names []string      // of stdio: v1.HandleStdin, …
	stdio []*os.File    // the process's own ends
	limit time.Duration // the time it has to its end; 0 is any
}

// exec starts a command in a running container, with the container's user, capabilities, seccomp and limits. It is not cut
// in the middle when ctx ends, since then nobody would own the process; its supervisor is told how long it may take.
func (m *Manager) exec(ctx context.Context, c *Container, cmd command) (*running, error) {
	if len(cmd.args) == 0 {
		return nil, errs.InvalidArgument.Errorf("exec: the command is empty")
	}
	if st := c.State().CRI(); st != cri.ContainerState_CONTAINER_RUNNING {
		return nil, errs.FailedPrecondition.Errorf("container %s is %s, not running", c.ID, st)
	}
	if err := m.silent(c); err != nil {
		return nil, err
	}
	if c.spec == nil {
		return nil, errs.FailedPrecondition.Errorf("container %s takes no exec: its spec was lost; replace the container", c.ID)
	}
	group, err := m.Group(c)
	if err != nil {
		return nil, err
	}
	id := newID()[:12]
	r := &running{group: group + "/exec-" + id, layout: m.cfg.Cgroups, in: c}
	if err := m.cfg.Cgroups.EnsureExec(r.group); err != nil {
		return nil, fmt.Errorf("exec group: %w", err)
	}
	handles, err := m.cfg.Cgroups.Open(group, r.group)
	if err != nil {
		return nil, errors.Join(err, r.layout.RemoveExec(r.group))
	}
	defer handles.Close()
	raw, err := json.Marshal(execProcess(c.spec.Process, cmd.args, cmd.tty))
	if err != nil {
		return nil, err
	}
	req := v1.Exec{Container: c.ID, ID: id, Process: raw, Seccomp: c.seccomp, Stdio: cmd.names, Limit: planLimit}
	if cmd.limit > 0 {
		req.Limit = min(cmd.limit, planLimit)
	}
	begin, done := m.detach(ctx, req.Limit+answerSlack)
	defer done()
	if r.Process, err = m.shims.Exec(begin, req, handles, cmd.stdio); err != nil {
		err = errors.Join(err, r.layout.KillExec(r.group))
		c.leave(r.group, r.layout.RemoveExec) // what was killed may be leaving still
		return nil, err
	}
	return r, nil
}

func execProcess(of *specs.Process, cmd []string, tty bool) *specs.Process {
	p := *of
	p.Args, p.Terminal = cmd, tty
	hasTerm := slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") })
	if tty && !hasTerm {
		p.Env = append(slices.Clone(p.Env), "TERM=xterm")
	}
	return &p
}

// ExecSync runs cmd and returns its output, each stream cut at 16 MiB, and its exit code. timeout 0 is none; when
// it is over the process and all it started are killed, and the error is DeadlineExceeded.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	c, err := m.Container(id)
	if err != nil {
		return nil, nil, 0, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	out, err := newCapture()
	if err != nil {
		return nil, nil, 0, err
	}
	errOut, err := newCapture()
	if err != nil {
		out.abort()
		return nil, nil, 0, err
	}
	r, err := m.exec(ctx, c, command{
		args: cmd, limit: timeout, names: []string{v1.HandleStdout, v1.HandleStderr}, stdio: []*os.File{out.w, errOut.w},
	})
	if err != nil {
		out.abort()
		errOut.abort()
		return nil, nil, 0, err
	}
	defer r.close()
	out.start()
	errOut.start()
	exit, err := r.Wait(ctx)
	if err != nil {
		kerr := r.killAll()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, werr := r.Wait(end)
		out.finish()
		errOut.finish()
		return nil, nil, 0, errs.DeadlineExceeded.Errorf("exec %q in container %s: %w", cmd[0], c.ID, errors.Join(err, kerr, werr))
	}
	return out.finish(), errOut.finish(), int32(exit.Code), nil //nolint:gosec // 0 to 255
}

// capture collects one stream of an exec.
type capture struct {
	r, w *os.File
	buf  []byte
	wg   sync.WaitGroup
}

func newCapture() (*capture, error) {
	r, w, err := os.Pipe()
	return &capture{r: r, w: w}, err
}

func (c *capture) abort() { _, _ = c.r.Close(), c.w.Close() }

func (c *capture) start() {
	_ = c.w.Close() // the process has it
	c.wg.Go(func() {
		chunk := make([]byte, 4096)
		for {
			n, err := c.r.Read(chunk)
			if room := execOutputLimit - len(c.buf); room > 0 {
				c.buf = append(c.buf, chunk[:min(n, room)]...)
			}
			if err != nil {
				return
			}
			if n == len(chunk) && len(chunk) < 64<<10 {
				chunk = make([]byte, 64<<10)
			}
		}
	})
}

// finish waits for the stream's end, briefly if the process has left it open.
func (c *capture) finish() []byte {
	_ = c.r.SetReadDeadline(time.Now().Add(drainLimit))
	c.wg.Wait()
	c.rest()
	_ = c.r.Close()
	return c.buf
}

// rest takes what is in the pipe at the end of drainLimit: on a machine that is busy enough nobody came to read it before.
func (c *capture) rest() {
	const most = 1 << 20 // a pipe's (pipe-max-size); who writes on and on is not waited for
	raw, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // an error is the end
		chunk := make([]byte, 64<<10)
		for left := most; left > 0 && len(c.buf) < execOutputLimit; {
			n, err := unix.Read(int(fd), chunk) // does not wait: os.Pipe's are not blocking
			if n <= 0 || err != nil {
				return
			}
			c.buf = append(c.buf, chunk[:n]...)
			left -= n
		}
	})
}

// Size is a terminal's.
type Size struct{ Width, Height uint16 }

// Streams are what an interactive client gives to Exec or Attach; those it does not want are nil.
type Streams struct {
	In       io.Reader
	Out, Err io.WriteCloser
	TTY      bool
	Resize   <-chan Size
}

// Exec runs cmd with a client's streams and returns its exit code. When ctx ends, the process is killed.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error) {
	c, err := m.Container(id)
	if err != nil {
		return 0, err
	}
	if s.TTY {
		return m.execTTY(ctx, c, cmd, s)
	}
	pl, err := newPlumbing(s)
	if err != nil {
		return 0, err
	}
	defer pl.close()
	r, err := m.exec(ctx, c, command{args: cmd, names: pl.names, stdio: pl.theirs})
	if err != nil {
		return 0, err
	}
	defer r.close()
	pl.start()
	return m.await(ctx, r, pl.drain)
}

func (m *Manager) await(ctx context.Context, r *running, drain func()) (int, error) {
	exit, err := r.Wait(ctx)
	if err != nil {
		kerr := r.killAll()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, werr := r.Wait(end)
		return 0, errors.Join(err, kerr, werr)
	}
	drain()
	return exit.Code, nil
}

func (m *Manager) execTTY(ctx context.Context, c *Container, cmd []string, s Streams) (int, error) {
	r, err := m.exec(ctx, c, command{args: cmd, tty: true})
	if err != nil {
		return 0, err
	}
	defer r.close()
	if r.Console == nil {
		return 0, errs.Internal.Errorf("exec in container %s got no terminal", c.ID)
	}
	con, err := pollable(r.Console)
	if err != nil {
		return 0, err
	}
	defer con.Close() //nolint:errcheck // a terminal
	stop := resizeFrom(s.Resize, con)
	defer stop()
	var wg sync.WaitGroup
	if s.Out != nil {
		wg.Go(func() { _, _ = io.Copy(s.Out, con) }) // ends with EIO when the last process has closed it
	}
	if s.In != nil {
		go func() { _, _ = io.Copy(con, s.In) }() //nolint:gocritic // ends with the client's stream
	}
	return m.await(ctx, r, func() {
		_ = con.SetReadDeadline(time.Now().Add(drainLimit))
		wg.Wait()
	})
}

// pollable is a duplicate of f whose reads can be interrupted.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// resizeFrom applies sizes to a terminal until the returned function is called.
func resizeFrom(sizes <-chan Size, con *os.File) func() {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				ws := unix.Winsize{Row: s.Height, Col: s.Width}
				raw, err := con.SyscallConn()
				if err != nil {
					return
				}
				_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &ws) })
			case <-quit:
				return
			}
		}
	})
	return func() { close(quit); wg.Wait() }
}
