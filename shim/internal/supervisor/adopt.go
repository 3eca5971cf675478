package supervisor

import (
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/stdio"
)

// adoptContainer takes over a container whose shim died. It is no child of this process: its end is seen on the
// pidfd, and the code comes from the record an earlier shim wrote or from the kernel (PIDFD_INFO_EXIT). Aborted: an earlier
// request for it is not answered yet.
func (s *Supervisor) adoptContainer(r *v1.AdoptContainer, fds []*os.File) (err error) {
	files := map[string]*os.File{}
	if len(fds) != len(r.Handles) || !slices.Contains(r.Handles, v1.HandlePidfd) {
		closeAll(fds)
		return errs.InvalidArgument.Errorf("adopt container %q: %d descriptors for %v", r.ID, len(fds), r.Handles)
	}
	for i, name := range r.Handles {
		files[name] = fds[i]
	}
	c := newContainer(r.Container)
	c.pid, c.pidfd, c.startedAt, c.adopted = r.Pid, files[v1.HandlePidfd], r.StartedAt, true
	if err := s.reserve(c); err != nil {
		closeAll(fds)
		if errs.Of(err) != errs.AlreadyExists {
			return err
		}
		if _, err := s.find(r.ID); err != nil {
			return errs.Aborted.Errorf("container %s is being adopted", r.ID)
		}
		return nil // a repeated request
	}
	fail := func(err error) error {
		closeAll(fds)
		s.release(c)
		return err
	}
	s.mu.Lock()
	err = s.givenUp(r.ID)
	s.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	if c.work, err = s.cfg.Runtime.Adopt(r.ID, r.Pid, r.OCI); err != nil {
		return fail(err)
	}
	log, err := s.openLog(&r.Container)
	if err != nil { // it runs all the same, and must not be held up by a pipe that nobody reads
		s.cfg.Log.Error("log of an adopted container not opened; its output is dropped and counted until it can be", "container", r.ID, "err", err)
	}
	if err := s.supervise(c, files, log); err != nil {
		return fail(err)
	}
	if err := s.watch(c); err != nil {
		c.io.Close()
		return fail(err)
	}
	return nil
}

// watch waits for the end of a process that is not a child.
func (s *Supervisor) watch(c *container) error {
	ready := make(chan struct{})
	var w *stdio.Watch
	w, err := s.cfg.Poller.Watch(int(c.pidfd.Fd()), func() {
		<-ready
		w.Remove()
		s.wg.Go(func() { s.exited(c, adoptedExit(c)) })
	})
	close(ready)
	if err != nil {
		return errs.Internal.Errorf("watch container %s: %w", c.cfg.ID, err)
	}
	return nil
}

// adoptedExit finds out how an adopted container ended.
func adoptedExit(c *container) v1.Exit {
	if e, ok := readExit(c.cfg.ExitFile); ok {
		return *e
	}
	now := time.Now()
	ws, ok := exitStatus(int(c.pidfd.Fd()))
	switch {
	case !ok:
		return v1.Exit{Code: 255, Unknown: true, At: now}
	case ws.Signaled():
		return v1.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal()), At: now}
	default:
		return v1.Exit{Code: ws.ExitStatus(), At: now}
	}
}

// pidfdInfo is struct pidfd_info, as of Linux 6.15 (PIDFD_INFO_SIZE_VER1).
type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	pid      uint32
	tgid     uint32
	ppid     uint32
	ids      [8]uint32
	exitCode int32
	coredump [2]uint32
}

// exitStatus asks the kernel for the wait status of a process that has been collected by its parent. A process
// that has ended and was not collected yet is waited for, five seconds: its parent is the daemon, or, if another
// daemon had started the dead shim, the machine's init, and some of those look once in a second or two.
func exitStatus(pidfd int) (unix.WaitStatus, bool) {
	for range 1000 {
		info := pidfdInfo{mask: unix.PIDFD_INFO_EXIT}
		// the number encodes the size of the struct, by which the kernel tells versions
		request := uintptr(0xc000ff0b) | unsafe.Sizeof(info)<<16
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), request, uintptr(unsafe.Pointer(&info))) //nolint:gosec // a descriptor
		if errno == 0 && info.mask&unix.PIDFD_INFO_EXIT != 0 {
			return unix.WaitStatus(info.exitCode), true //nolint:gosec // a bit field
		}
		if errno != 0 && errno != unix.ESRCH {
			return 0, false // before Linux 6.13 there is no such call
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, false
}
