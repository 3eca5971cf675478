package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/shim/internal/plan"
)

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// cloneArgs is struct clone_args of clone3(2), as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// rawStep is a plan.Step whose arguments are numbers and pointers.
type rawStep struct {
	nr    uintptr
	arg   [6]uintptr
	want  int64
	errs  [6]uint16 // first pass, then note
	save  uint16
	skip  uint16
	slots uint8 // bit i: arg[i] is a slot
	pass  uint8
	note  uint8
	check uint8
}

// The shared page: words of 64 bits that the child writes and the parent reads after the child's end of the
// report pipe is closed. It needs no system call, so a failure is reported under any seccomp filter.
const (
	wordFailed   = 0 // index of the failed step + 1
	wordErrno    = 1
	wordNotes    = 2 // how many notes
	wordChild    = 3 // pid of the child made by NrClone
	wordProgress = 4 // index of the step that runs
	wordNote0    = 5
	maxNotes     = 15
	wordCmsg     = 36 // the control message that carries slot Console, right before it
	wordSlot0    = 37 // slot n is at wordSlot0+n
	pageSize     = 4096
)

type page [pageSize / 8]int64

// spawn clones and, in the child, runs the steps. It allocates nothing and calls nothing that could: between
// beforeFork and afterFork the stack must not grow and no other thread of the child exists. The kernel has reset the
// runtime's signal handlers (CLONE_CLEAR_SIGHAND); the plan unblocks the signals.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func spawn(ca *cloneArgs, steps *rawStep, n int, pg *page) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(ca)), unsafe.Sizeof(*ca), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for i := 0; i < n; i++ {
		s := (*rawStep)(unsafe.Add(unsafe.Pointer(steps), uintptr(i)*unsafe.Sizeof(rawStep{})))
		pg[wordProgress] = int64(i)
		r, e := call(s, pg)
		if e == 0 {
			if s.save != 0 {
				pg[wordSlot0+int(s.save)&511] = int64(r)
			}
			i += int(s.skip)
			continue
		}
		if !tolerated(s, i, e, pg) {
			pg[wordFailed], pg[wordErrno] = int64(i)+1, int64(e)
			break
		}
	}
	var null *byte
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 253, 0, 0)
		*null = 0 // a filter that denies exit_group: end by SIGSEGV
	}
}

//go:norace
//go:nocheckptr
//go:nosplit
func call(s *rawStep, pg *page) (uintptr, syscall.Errno) {
	a := s.arg
	if s.slots != 0 {
		for k := uintptr(0); k < 6; k++ {
			if s.slots&(1<<k) != 0 {
				a[k] = uintptr(pg[(wordSlot0+a[k])&511])
			}
		}
	}
	switch s.nr {
	case plan.NrClone:
		// a[0] points to the cloneArgs; the child's pid is written to the shared page before it runs
		pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, a[0], unsafe.Sizeof(cloneArgs{}), 0)
		if pid != 0 && e == 0 {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return 0, e
	case plan.NrExit:
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, a[0], 0, 0)
	case plan.NrNop:
		return 0, 0
	case plan.NrFail:
		return 0, syscall.Errno(a[0])
	}
	r, _, e := syscall.RawSyscall6(s.nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e == 0 && s.check != 0 && int64(r) != s.want {
		e = syscall.EPROTO
	}
	return r, e
}

//go:norace
//go:nocheckptr
//go:nosplit
func tolerated(s *rawStep, i int, e syscall.Errno, pg *page) bool {
	for k := uint8(0); k < s.pass+s.note && k < 6; k++ {
		if syscall.Errno(s.errs[k]) != e {
			continue
		}
		if c := pg[wordNotes]; k >= s.pass && c < maxNotes {
			pg[(wordNote0+2*c)&511], pg[(wordNote0+2*c+1)&511] = int64(i), int64(e)
			pg[wordNotes] = c + 1
		}
		return true
	}
	return false
}
