package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/shim/internal/plan"
	"github.com/berth-project/berth/shim/internal/reap"
)

// Failure is a step of a plan that failed.
type Failure struct {
	Step  *plan.Step
	Errno syscall.Errno
}

// Error names the step: "mount proc on /proc: operation not permitted".
func (f *Failure) Error() string { return f.Step.What + ": " + f.Errno.Error() }

// Unwrap gives the errno.
func (f *Failure) Unwrap() error { return f.Errno }

// Child is a process that is going through its plan. After Wait it is the workload.
type Child struct {
	Pid   int
	Pidfd *os.File
	// Notes are the steps that failed and were only to be noted; valid after Wait.
	Notes []Failure

	launcher *Launcher
	plan     *plan.Plan
	first    int // index of the plan's first step
	joins    int // how many of those before it enter a cgroup
	proc     *reap.Process
	done     *os.File // read end: the end of file says that the child has exec'ed or ended
	sync     *os.File // write end of the barrier
	sock     *os.File // the console comes here
	page     *page
}

func (o own) close() {
	for _, fd := range [...]int{o.done, o.sync, o.sock} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// pipes makes the descriptors between parent and child, and returns the child's.
func (c *Child) pipes(console bool) (own, error) {
	o := own{done: -1, sync: -1, sock: -1}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return o, err
	}
	c.done, o.done = os.NewFile(uintptr(p[0]), "report"), p[1] //nolint:gosec // descriptors
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return o, errors.Join(err, c.closeParent(o))
	}
	c.sync, o.sync = os.NewFile(uintptr(p[1]), "sync"), p[0] //nolint:gosec // descriptors
	if !console {
		return o, nil
	}
	s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return o, errors.Join(err, c.closeParent(o))
	}
	if err := unix.SetNonblock(s[0], true); err != nil { // so that a read of it can be given up
		return o, errors.Join(err, unix.Close(s[0]), unix.Close(s[1]), c.closeParent(o))
	}
	c.sock, o.sock = os.NewFile(uintptr(s[0]), "console"), s[1] //nolint:gosec // descriptors
	return o, nil
}

func (c *Child) closeParent(o own) error {
	o.close()
	return c.closeOwn()
}

func (c *Child) closeOwn() error {
	for _, f := range []*os.File{c.done, c.sync, c.sock} {
		if f != nil {
			_ = f.Close()
		}
	}
	c.done, c.sync, c.sock = nil, nil, nil
	return nil
}

func (c *Child) drop() {
	_ = c.closeOwn()
	if c.page != nil {
		c.launcher.givePage(c.page)
		c.page = nil
	}
}

// Process is the child as the reaper knows it.
func (c *Child) Process() *reap.Process { return c.proc }

// Release lets the child pass one barrier.
func (c *Child) Release() error {
	_, err := c.sync.Write([]byte{0})
	if errors.Is(err, unix.EPIPE) {
		return nil // it has failed already; Wait tells how
	}
	return err
}

// Handover waits for the plan's NrClone: afterwards the Child is the second process. It must be called before
// Release lets that one go on.
func (c *Child) Handover(ctx context.Context) error {
	select {
	case <-c.proc.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	pid := int(int32(c.page[wordChild])) //nolint:gosec // written by the kernel as an int
	if pid == 0 {
		return nil // it failed before; Wait tells how
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open the process %d: %w", pid, err)
	}
	_ = c.Pidfd.Close()
	c.Pid, c.Pidfd = pid, os.NewFile(uintptr(fd), "pidfd") //nolint:gosec // a descriptor
	c.proc = c.launcher.reaper.Adopt(pid, nil)
	return nil
}

// Wait waits until the child has exec'ed, or has ended its plan in another way. On any error the child is dead
// and collected, and its pidfd closed.
func (c *Child) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.giveUp(c.done) })
	var b [1]byte
	_, err := c.done.Read(b[:])
	canceled := !stop()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = nil // it does not die: Abort says so
	case err == nil:
		err = errors.New("unexpected data from the child")
	case errors.Is(err, io.EOF):
		err = c.outcome()
	}
	if err == nil && canceled {
		err = ctx.Err()
	}
	if err != nil {
		if canceled {
			err = errors.Join(ctx.Err(), err)
		}
		return errors.Join(err, c.Abort())
	}
	c.drop()
	return nil
}

// outcome reads the shared page.
func (c *Child) outcome() error {
	pg := c.page
	for i := range min(pg[wordNotes], maxNotes) {
		if s := c.step(pg[wordNote0+2*i]); s != nil {
			c.Notes = append(c.Notes, Failure{Step: s, Errno: syscall.Errno(pg[wordNote0+2*i+1])}) //nolint:gosec // an errno
		}
	}
	if n := pg[wordFailed]; n > 0 {
		if s := c.step(n - 1); s != nil {
			return &Failure{Step: s, Errno: syscall.Errno(pg[wordErrno])} //nolint:gosec // an errno
		}
		errno := syscall.Errno(pg[wordErrno]) //nolint:gosec // an errno
		if n <= int64(c.joins) {
			return fmt.Errorf("enter a v1 cgroup: %w", errno)
		}
		return errno
	}
	switch s := c.step(pg[wordProgress]); {
	case s == nil:
		return errors.New("the new process died before its first step")
	case s.Nr == unix.SYS_EXECVE, s.Nr == unix.SYS_EXECVEAT, s.Nr == plan.NrExit:
		return nil
	default:
		return fmt.Errorf("%s: the new process was killed there", s.What)
	}
}

func (c *Child) step(raw int64) *plan.Step {
	i := int(raw) - c.first
	if i < 0 || i >= len(c.plan.Steps) {
		return nil
	}
	return &c.plan.Steps[i]
}

// Kill sends SIGKILL to the child.
func (c *Child) Kill() error {
	return unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
}

// dieLimit is how long a killed child is waited for, by a read and then by Abort. One in uninterruptible sleep, as before
// a file server that does not answer, dies when the server answers or is given up; the reaper collects it then.
const dieLimit = 2 * time.Second

// giveUp kills the child and lets a read that waits for it end soon, whether or not it dies.
func (c *Child) giveUp(read *os.File) {
	_ = c.Kill()
	_ = read.SetReadDeadline(time.Now().Add(dieLimit))
}

// Abort kills the child, waits for its end, up to dieLimit, and releases everything. The page is not used again: a second
// process that the child may have made ends when it meets the closed barrier, and may still write. The error says that
// the child is not dead yet.
func (c *Child) Abort() (err error) {
	_ = c.Kill()
	select {
	case <-c.proc.Done():
	default:
		t := time.NewTimer(dieLimit)
		defer t.Stop()
		select {
		case <-c.proc.Done():
		case <-t.C:
			err = errs.DeadlineExceeded.Errorf("process %d is killed and does not die: it hangs in the kernel (%s)", c.Pid, c.place())
		}
	}
	_ = c.Pidfd.Close()
	if c.page != nil {
		c.launcher.unmap(c.page)
		c.page = nil
	}
	c.drop()
	return err
}

// place is the step that the child is in.
func (c *Child) place() string {
	if c.page != nil {
		if s := c.step(c.page[wordProgress]); s != nil {
			return s.What
		}
	}
	return "before its first step"
}

// Console receives the terminal's master, which the child sends in the course of its plan. Call it before Wait. When ctx
// ends the child is killed.
func (c *Child) Console(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { c.giveUp(c.sock) })
	defer stop()
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var b [1]byte
	var oobn int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		_, oobn, _, _, rerr = unix.Recvmsg(int(fd), b[:], oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(rerr, unix.EAGAIN)
	})
	if err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	if rerr != nil || oobn == 0 {
		return nil, rerr // the child ended: Wait tells how
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) == 0 {
		return nil, fmt.Errorf("console message: %w", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("console message: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil //nolint:gosec // a descriptor
}
