package unpacker

import (
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// nest is the thread that children are started from. It lives as long as somebody unpacks: making it costs about as
// much as starting a child, and nothing of it is left when it is not needed.
//
//	(none) --first acquire--> ready --last release--> (none)
//	             |
//	             +--the kernel refuses--> (none), and so does acquire
type nest struct {
	program string

	mu    sync.Mutex
	users int
	birth chan birth // to the thread; nil without one
	done  chan struct{}
}

// birth is one request to the thread.
type birth struct {
	args  []string
	files []*os.File
	out   chan<- born
}

type born struct {
	process *os.Process
	err     error
}

// acquire makes the thread if there is none. Each success is to be released.
func (n *nest) acquire() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users == 0 {
		ready := make(chan error, 1)
		n.birth, n.done = make(chan birth), make(chan struct{})
		go n.run(ready, n.birth, n.done)
		if err := <-ready; err != nil {
			<-n.done
			return errs.FailedPrecondition.Errorf("the unpacker cannot be confined on this machine: %w", err)
		}
	}
	n.users++
	return nil
}

// release ends the thread with its last user, who must have waited for all children.
func (n *nest) release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users--; n.users == 0 {
		close(n.birth)
		<-n.done
	}
}

// run is the thread: it is never unlocked, so that it ends with what was done to it. Children die with it
// (PR_SET_PDEATHSIG goes by thread).
func (n *nest) run(ready chan<- error, requests <-chan birth, done chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread does not end with its goroutine, and is what /proc/self shows: it stays where it is, and is held
		// here for as long as another one is needed, so that no goroutine gets it meanwhile.
		defer runtime.UnlockOSThread()
		go n.run(ready, requests, done)
		<-done
		return
	}
	defer close(done)
	err := enclose(n.program)
	ready <- err
	if err != nil {
		return
	}
	for r := range requests {
		p, err := os.StartProcess("/"+program, r.args, &os.ProcAttr{
			Env:   []string{"GOMEMLIMIT=" + memoryGoal, "GOTRACEBACK=none"},
			Files: r.files,
			Sys:   &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL},
		})
		r.out <- born{p, err}
	}
}

// start runs the program as a child with the given files as its descriptors 0, 1, 2, …
func (n *nest) start(args []string, files ...*os.File) (*os.Process, error) {
	out := make(chan born, 1)
	n.birth <- birth{args, files, out}
	b := <-out
	return b.process, b.err
}
