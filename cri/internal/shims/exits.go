package shims

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// How a container ended is told by its shim, whose child it is. One that was adopted is nobody's child who would tell:
// the kernel keeps the code in the pidfd (Linux 6.15), and before that the process that it came to when its shim died
// has it, which is this one, if the shim was started by it.

// ended passes an exit on, once per process.
func (p *Pool) ended(s *shim, x v1.Exited) {
	p.mu.Lock()
	if x.Exec != "" {
		if e := p.execs[x.Container+"/"+x.Exec]; e != nil { // else nobody waits for it
			e.end(x.Exit)
		}
		p.mu.Unlock()
		return
	}
	e := p.containers[x.Container]
	if e == nil { // before the answer to Start arrived: Start merges it
		e = &containerEntry{shim: s}
		p.containers[x.Container] = e
	}
	again := e.exited
	e.exited = true
	x.Exit = e.seen(x.Exit)
	p.mu.Unlock()
	if !again {
		p.exited(x)
	}
}

// resync passes on the exits that a broken connection swallowed.
func (p *Pool) resync(hello *v1.HelloReply) {
	for _, st := range hello.Containers {
		if st.Exit == nil {
			continue
		}
		p.mu.Lock()
		e := p.containers[st.ID]
		missed := e != nil && !e.exited
		x := v1.Exited{Container: st.ID, Exit: *st.Exit}
		if missed {
			e.exited = true
			x.Exit = e.seen(x.Exit)
		}
		p.mu.Unlock()
		if missed {
			p.exited(x)
		}
	}
}

// ExitOf is what is known of the end of a dead container without its shim. It is unknown until the container's parent
// has collected it.
func (p *Pool) ExitOf(id string) v1.Exit {
	x := v1.Exit{Code: 255, Unknown: true, At: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.containers[id]
	if e == nil {
		return x
	}
	if pidfd := e.handles[v1.HandlePidfd]; pidfd != nil {
		x = exitOf(pidfd)
	}
	return e.seen(x)
}

// seen is a shim's or the kernel's word of a container's end, or this process's own if that one knows nothing.
func (e *containerEntry) seen(x v1.Exit) v1.Exit {
	if !x.Unknown {
		return x
	}
	if e.collect(); e.last == nil {
		return x
	}
	own := *e.last
	own.OOMKilled = x.OOMKilled && own.Code != 0
	return own
}

// exitOf reads an ended process's status from its pidfd.
func exitOf(f *os.File) v1.Exit {
	status, err := pidfdExit(int(f.Fd()))
	if err != nil {
		return v1.Exit{Code: 255, Unknown: true, At: time.Now()}
	}
	if status.Signaled() {
		return killedBy(int(status.Signal()))
	}
	return v1.Exit{Code: status.ExitStatus(), At: time.Now()}
}

func killedBy(signal int) v1.Exit { return v1.Exit{Code: 128 + signal, Signal: signal, At: time.Now()} }

// ofChild is the end of a child that waitid(2) told.
func ofChild(info *unix.Siginfo) v1.Exit {
	const exited = 1 // CLD_EXITED; the others are CLD_KILLED and CLD_DUMPED
	// siginfo_t of SIGCHLD on 64-bit machines (asm-generic/siginfo.h)
	child := (*struct {
		signo, errno, code, _ int32
		pid, uid              uint32
		status                int32
	})(unsafe.Pointer(info)) //nolint:gosec // the kernel's layout
	if child.code == exited {
		return v1.Exit{Code: int(child.status), At: time.Now()}
	}
	return killedBy(int(child.status))
}

var errNoExit = errs.FailedPrecondition.Errorf("the kernel keeps no exit code in a pidfd (Linux 6.15)")

// pidfdExit is PIDFD_GET_INFO with PIDFD_INFO_EXIT (linux/pidfd.h).
func pidfdExit(fd int) (unix.WaitStatus, error) {
	const exitBit = 1 << 3
	info := struct {
		Mask, CgroupID                                   uint64
		Pid, Tgid, Ppid                                  uint32
		Ruid, Rgid, Euid, Egid, Suid, Sgid, Fsuid, Fsgid uint32
		ExitCode                                         int32
	}{Mask: exitBit}
	const request = 0xc0<<24 | 64<<16 | 0xff<<8 | 11 // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	if err := ioctl(fd, request, &info.Mask); err != nil {
		return 0, err
	}
	if info.Mask&exitBit == 0 {
		return 0, errNoExit
	}
	return unix.WaitStatus(info.ExitCode), nil //nolint:gosec // a wait status
}
