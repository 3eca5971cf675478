package killpoint

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// again is how often a point of the same name is told apart: what is done a third time is done in a loop.
const again = 2

// options: a system call's stop is told from a signal's, and threads that are made later are traced. Processes are not.
const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE

// tracer is an observation.
type tracer struct {
	pid   int
	point string
	errno unix.Errno
	seen  map[string]int
	fails int // the thread whose call is to fail, while it is made
}

// trace observes all threads of a process until it ends.
func trace(pid int, point string, errno unix.Errno) error {
	runtime.LockOSThread() // the tracer is a thread
	if err := seize(pid); err != nil {
		return err
	}
	fmt.Println("ready")
	t := &tracer{pid: pid, point: point, errno: errno, seen: map[string]int{}}
	for {
		var st unix.WaitStatus
		tid, err := unix.Wait4(-1, &st, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECHILD) || tid == pid && (st.Exited() || st.Signaled()) {
			return nil
		}
		if err != nil {
			return err
		}
		if !st.Stopped() {
			continue
		}
		signal := 0
		switch s := st.StopSignal(); {
		case s == unix.SIGTRAP|0x80:
			if err := t.stopped(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		case st>>16 != 0: // an event: a thread was made, or has just been seized
		default:
			signal = int(s)
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
}

// stopped looks at a thread that enters or leaves a call.
func (t *tracer) stopped(tid int) error {
	if t.fails == tid {
		t.fails = 0
		return leave(tid, t.errno)
	}
	what := entering(t.pid, tid)
	if what == "" {
		return nil
	}
	if t.seen[what]++; t.seen[what] > again {
		return nil
	}
	what = fmt.Sprintf("%s #%d", what, t.seen[what])
	fmt.Println("point " + what)
	if what != t.point {
		return nil
	}
	fmt.Println("met")
	if t.errno == 0 {
		return unix.Kill(t.pid, unix.SIGKILL)
	}
	t.fails = tid
	return skip(tid)
}

// seize stops every thread once, to be told of its calls from then on.
func seize(pid int) error {
	have := map[int]bool{}
	for fresh := true; fresh; {
		fresh = false
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, e := range all {
			tid, err := strconv.Atoi(e.Name())
			if err != nil || have[tid] {
				continue
			}
			have[tid], fresh = true, true
			if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0); errno != 0 {
				if errno == unix.ESRCH || errno == unix.EPERM && threadOf(pid, tid) { // it has ended, or its maker was seized first
					continue
				}
				return fmt.Errorf("seize thread %d: %w", tid, errno)
			}
			if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// threadOf says whether a thread is traced by this process already.
func threadOf(pid, tid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, tid))
	return err == nil
}

// call is a system call at its entry.
type call struct {
	pid  int
	nr   uint64
	args [6]uint64
}

// entering is the point that a stopped thread is at, or nothing: it leaves a call, or the call changes nothing.
func entering(pid, tid int) string {
	var info struct { // struct ptrace_syscall_info (linux/ptrace.h)
		op     uint8
		_      [3]uint8
		arch   uint32
		ip, sp uint64
		nr     uint64
		args   [6]uint64
		_      [24]byte
	}
	const getSyscallInfo, entry = 0x420e, 1
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || info.op != entry {
		return ""
	}
	return call{pid: pid, nr: info.nr, args: info.args}.point()
}
