package unpacker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A ring is memory in which a blob goes to a child without being copied: slots of chunk bytes, written here, and
// mapped read-only there. The memory is sealed: the child can neither write to it nor cut it off. For each slot
// that is full its length goes through one pipe, in order, and for each that is read a byte comes back through
// another; what comes back beyond what went is ignored, so that a child which lies about it reads nonsense.
const (
	chunk = 256 << 10
	slots = 4
)

// ring is this side's end.
type ring struct {
	mem     []byte
	lengths io.WriteCloser
	credits io.ReadCloser
	out     int // slots that are full
	next    int
}

// newMemory makes the memory and maps it here.
func newMemory() (f *os.File, mem []byte, err error) {
	fd, err := unix.MemfdCreate("blob", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, os.NewSyscallError("memfd_create", err)
	}
	made := os.NewFile(uintptr(fd), "blob") // not f, which a return of nil clears
	defer func() {
		if err != nil {
			err = errors.Join(err, made.Close())
		}
	}()
	if err = unix.Ftruncate(fd, chunk*slots); err != nil {
		return nil, nil, os.NewSyscallError("ftruncate", err)
	}
	mem, err = unix.Mmap(fd, 0, chunk*slots, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl F_ADD_SEALS", err), unix.Munmap(mem))
	}
	return made, mem, nil
}

// slot is the place for the next bytes; it waits until the child has read what was there.
func (r *ring) slot() ([]byte, error) {
	var back [slots]byte
	for r.out == slots {
		n, err := r.credits.Read(back[:])
		if err != nil {
			return nil, err
		}
		r.out -= n
	}
	return r.mem[r.next*chunk:][:chunk], nil
}

// push gives the first n bytes of slot to the child.
func (r *ring) push(n int) error {
	_, err := r.lengths.Write(binary.LittleEndian.AppendUint32(nil, uint32(n))) //nolint:gosec // at most chunk
	r.out++
	r.next = (r.next + 1) % slots
	return err
}

// end tells the child that this was all.
func (r *ring) end() error { return r.lengths.Close() }

// close gives the memory back. Nothing may use slots any more.
func (r *ring) close() {
	_ = r.lengths.Close()  //nolint:errcheck // perhaps a second time
	_ = r.credits.Close()  //nolint:errcheck // read side
	_ = unix.Munmap(r.mem) //nolint:errcheck // it is mapped
	r.mem = nil
}

// source is the child's end: an io.Reader of what the other side pushes.
type source struct {
	mem     []byte
	lengths io.Reader
	credits io.Writer
	rest    []byte
	next    int
	open    bool // a slot is being read
}

// newSource maps the memory that is descriptor fd.
func newSource(fd int, lengths io.Reader, credits io.Writer) (*source, error) {
	mem, err := unix.Mmap(fd, 0, chunk*slots, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &source{mem: mem, lengths: lengths, credits: credits}, nil
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		if s.open {
			s.open = false
			if _, err := s.credits.Write([]byte{0}); err != nil {
				return 0, err
			}
		}
		var b [4]byte
		if _, err := io.ReadFull(s.lengths, b[:]); err != nil {
			return 0, err
		}
		n := binary.LittleEndian.Uint32(b[:])
		if n == 0 || n > chunk {
			return 0, fmt.Errorf("slot of %d bytes", n)
		}
		s.rest, s.open = s.mem[s.next*chunk:][:n], true
		s.next = (s.next + 1) % slots
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
