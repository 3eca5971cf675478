package shims

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

const (
	// searched is how many descriptors of a container's processes are looked at for its output, which is 1 and 2 of the first
	// one as a rule.
	searched = 100_000
	// searchStep is how many are read at once.
	searchStep = 512
)

// inodes are those of files that are there, by name.
func inodes(files map[string]*os.File) map[string]uint64 {
	all := map[string]uint64{}
	for name, f := range files {
		var st unix.Stat_t
		if f != nil && unix.Fstat(int(f.Fd()), &st) == nil {
			all[name] = st.Ino
		}
	}
	return all
}

// search looks among what processes have open.
type search struct {
	ctx   context.Context //nolint:containedctx // of one call
	names map[string]string
	found map[string]*os.File
	left  int
}

// findPipes opens, for reading, the pipes that processes have open, by inode. What nobody has open any more is not there. What
// these processes are is a tenant's, who may have a million descriptors, and files among them whose server never answers: so
// there is an end to it, and it is waited for no longer than ctx lasts.
func findPipes(ctx context.Context, pids []int, want map[string]uint64) (map[string]*os.File, error) {
	s := &search{ctx: ctx, names: map[string]string{}, found: map[string]*os.File{}, left: searched}
	for name, inode := range want {
		s.names[fmt.Sprintf("pipe:[%d]", inode)] = name
	}
	done := make(chan error, 1)
	go func() { done <- s.all(pids) }() //nolint:gocritic // given up if it hangs in a tenant's file system
	select {
	case err := <-done:
		return s.found, err
	case <-ctx.Done():
		return nil, errs.DeadlineExceeded.Errorf("its output was looked for too long: %w", ctx.Err())
	}
}

func (s *search) all(pids []int) error {
	for _, pid := range pids {
		if len(s.found) == len(s.names) {
			return nil
		}
		if err := s.process(pid); err != nil {
			return err
		}
	}
	return nil
}

func (s *search) process(pid int) error {
	d, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	defer d.Close() //nolint:errcheck // read only
	for {
		ents, err := d.ReadDir(searchStep) // by number
		if err != nil || len(ents) == 0 {
			return nil //nolint:nilerr // its end, or the process's
		}
		if s.left -= len(ents); s.left < 0 || s.ctx.Err() != nil {
			return errs.ResourceExhausted.Errorf("its output is not among the first %d descriptors of its processes", searched)
		}
		for _, ent := range ents {
			if s.look(d.Name() + "/" + ent.Name()); len(s.found) == len(s.names) {
				return nil
			}
		}
	}
}

func (s *search) look(path string) {
	to, err := os.Readlink(path)
	if name := s.names[to]; err == nil && name != "" && s.found[name] == nil {
		if f, err := openPipe(path, to); err == nil { // else it was closed in between
			s.found[name] = f
		}
	}
}

// openPipe opens a pipe by a process's descriptor, which may be another file by now: so its name is read again from a
// descriptor that has opened nothing. Names of pipes are the kernel's, and no file system is asked for them.
func openPipe(path, want string) (*os.File, error) {
	at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at) //nolint:errcheck // it has opened nothing
	own := fmt.Sprintf("/proc/self/fd/%d", at)
	if to, err := os.Readlink(own); err != nil || to != want {
		return nil, unix.ENOENT
	}
	fd, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // without a writer it would wait
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, false); err != nil { // as the one that is lost was
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}
