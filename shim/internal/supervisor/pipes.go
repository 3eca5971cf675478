package supervisor

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/executor"
)

// pipes are the standard streams of a process that is about to start.
type pipes struct {
	parent map[string]*os.File // by handle
	child  [3]*os.File         // nil with a terminal
}

// makePipes makes them; without stdin the input is /dev/null. The container may read what it writes: so its output has
// a reader, and no write is answered with SIGPIPE, while nobody else holds the other end because the daemon and its shim were
// killed together. The next daemon finds the pipe again by its inode.
func makePipes(terminal, stdin bool) (*pipes, error) {
	p := &pipes{parent: map[string]*os.File{}}
	if terminal {
		return p, nil
	}
	var err error
	if stdin {
		p.child[0], p.parent[v1.HandleStdin], err = pipe()
		if err == nil { // its writer is a goroutine; a container that does not read must not hold a thread
			err = unix.SetNonblock(int(p.parent[v1.HandleStdin].Fd()), true)
		}
	}
	for i, name := range [...]string{1: v1.HandleStdout, 2: v1.HandleStderr} {
		if name != "" && err == nil {
			if p.parent[name], p.child[i], err = pipe(); err == nil {
				err = p.readable(i)
			}
		}
	}
	if err != nil {
		p.closeParent()
		p.closeChild()
		return nil, err
	}
	return p, nil
}

// readable opens the write end of a stream anew, for both.
func (p *pipes) readable(i int) error {
	path := fmt.Sprintf("/proc/self/fd/%d", p.child[i].Fd())
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	_ = p.child[i].Close() // the same pipe is open
	p.child[i] = os.NewFile(uintptr(fd), "pipe")
	return nil
}

// pipe makes a blocking pipe whose Files the Go runtime does not poll.
func pipe() (r, w *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return os.NewFile(uintptr(fd[0]), "pipe"), os.NewFile(uintptr(fd[1]), "pipe"), nil //nolint:gosec // descriptors
}

func (p *pipes) stdio() executor.Stdio {
	fds := executor.Stdio{-1, -1, -1}
	for i, f := range p.child {
		if f != nil {
			fds[i] = int(f.Fd())
		}
	}
	return fds
}

// chown gives the pipes to the container's user, who may open them again by /dev/stdout.
func (p *pipes) chown(spec *specs.Spec) error {
	if spec.Process == nil || spec.Linux == nil {
		return nil // refused later, in words
	}
	uid := hostID(spec.Process.User.UID, spec.Linux.UIDMappings)
	return chownPipes(p.child[:], uid)
}

func chownPipes(files []*os.File, uid int) error {
	if uid == 0 {
		return nil
	}
	for _, f := range files {
		if f == nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO {
			continue
		}
		if err := f.Chown(uid, -1); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return nil
}

// hostID maps a container's id to the host's.
func hostID(id uint32, maps []specs.LinuxIDMapping) int {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID + id - m.ContainerID)
		}
	}
	return int(id)
}

func (p *pipes) closeParent() {
	for _, f := range p.parent {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (p *pipes) closeChild() { closeAll(p.child[:]) }
