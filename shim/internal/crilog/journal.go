package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Journal is where output is between the pipe and the log file: memory that is mapped from a file, so that it
// outlives a killed shim and the next one can finish what was begun. Output is read straight into it; each step is
// announced by a store to the header before it is made, and a read or a line is therefore in the log exactly once,
// wherever a SIGKILL falls. Nothing is synced: after a power cut there is no container to go on with.
//
// The file is a header page and, for each stream, two buffers for the start of an unfinished line (which take turns,
// so that one is whole at any time) and one for what is read. An idle stream's buffers are given back.
type Journal struct {
	path string

	mu   sync.Mutex // guards the making of the file, at the first output
	file *os.File
	mem  []byte
}

// The phases of a slot; the state word is phase | turn<<8.
const (
	phaseIdle    = 0
	phaseReading = 1 // in[:n] is all zero until the read has happened
	phaseWriting = 2 // in[:n] was read; the records may be in the log from off on, or not
)

// ChunkSize is the most that is read at once.
const ChunkSize = 32 << 10

const (
	headerPage = 4096
	regionSize = 2*MaxLine + ChunkSize
	streams    = 2
)

// header is the part of the header page that belongs to one stream.
type header struct {
	state uint64
	n     int64
	pend  [2]int64
	off   int64  // size of the log file before the records were written
	ino   uint64 // of the log file
	now   int64  // time of the records, Unix nanoseconds
	_     uint64
}

// slot is a stream's part of a journal.
type slot struct {
	j         *Journal
	index     int
	h         *header // nil until the file is made
	allocated bool    // the buffers have room on the disk
}

// OpenJournal opens the journal at path if there is one; if not, it is made when the first output comes.
func OpenJournal(path string) (*Journal, error) {
	j := &Journal{path: path}
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		err = j.ensure()
	}
	return j, err
}

// ensure makes and maps the file.
func (j *Journal) ensure() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		return nil
	}
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("output journal: %w", err)
	}
	err = f.Truncate(headerPage + streams*regionSize)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, headerPage)
	}
	if err == nil {
		j.mem, err = unix.Mmap(int(f.Fd()), 0, headerPage+streams*regionSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("output journal: %w", err), os.Remove(j.path), f.Close())
	}
	_ = unix.Madvise(j.mem, unix.MADV_RANDOM) // no pages beside those that are used
	j.file = f
	return nil
}

// Close unmaps the journal and removes its file: all output is in the log.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	return errors.Join(unix.Munmap(j.mem), os.Remove(j.path), j.file.Close())
}

func (j *Journal) slot(index int) *slot {
	s := &slot{j: j, index: index}
	if j.file != nil {
		s.h = j.header(index)
	}
	return s
}

func (j *Journal) header(index int) *header {
	return (*header)(unsafe.Pointer(&j.mem[index*int(unsafe.Sizeof(header{}))]))
}

func (s *slot) region() []byte {
	at := headerPage + s.index*regionSize
	return s.j.mem[at : at+regionSize]
}

func (s *slot) in() []byte { return s.region()[2*MaxLine:] }

// ready tells whether the slot can hold something: its file is made and has room.
func (s *slot) ready() bool { return s != nil && s.allocated }

func (s *slot) turn() uint64 { return atomic.LoadUint64(&s.h.state) >> 8 & 1 }

func (s *slot) phase() uint64 { return atomic.LoadUint64(&s.h.state) & 0xff }

func (s *slot) set(phase, turn uint64) { atomic.StoreUint64(&s.h.state, phase|turn<<8) }

// pending is the start of the unfinished line.
func (s *slot) pending() []byte {
	t := s.turn()
	n := min(max(atomic.LoadInt64(&s.h.pend[t]), 0), MaxLine)
	if n == 0 {
		return nil
	}
	return s.region()[t*MaxLine:][:n]
}

// begin announces a read of want bytes and returns where to read them to; nil if there is no room on the disk, which
// must be found out here and not by a signal.
func (s *slot) begin(want int) []byte {
	if s.h == nil {
		if s.j.ensure() != nil {
			return nil
		}
		s.h = s.j.header(s.index)
	}
	if !s.allocated {
		at := int64(headerPage + s.index*regionSize)
		if unix.Fallocate(int(s.j.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, regionSize) != nil {
			return nil
		}
		s.allocated = true
	}
	in := s.in()[:min(want, ChunkSize)]
	clear(in)
	atomic.StoreInt64(&s.h.n, int64(len(in)))
	s.set(phaseReading, s.turn())
	return in
}

// writing announces the records of in[:n], which will be at off of the file ino.
func (s *slot) writing(n int, off int64, ino uint64, now time.Time) {
	atomic.StoreInt64(&s.h.n, int64(n))
	atomic.StoreInt64(&s.h.off, off)
	atomic.StoreUint64(&s.h.ino, ino)
	atomic.StoreInt64(&s.h.now, now.UnixNano())
	s.set(phaseWriting, s.turn())
}

// commit makes the concatenation of a and b the pending start of a line, and the slot idle.
func (s *slot) commit(a, b []byte) {
	t := s.turn()
	next := 1 - t
	buf := s.region()[next*MaxLine:][:MaxLine]
	n := copy(buf, a)
	n += copy(buf[n:], b)
	atomic.StoreInt64(&s.h.pend[next], int64(n))
	s.set(phaseIdle, next)
}

// rest gives the buffers back if nothing is in them.
func (s *slot) rest() {
	if s.allocated && s.phase() == phaseIdle && s.pending() == nil {
		at := int64(headerPage + s.index*regionSize)
		if unix.Fallocate(int(s.j.file.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, at, regionSize) == nil {
			s.allocated = false
		}
	}
}

// recover finishes what a killed shim had begun in the slot of s.
func (s *Stream) recover() {
	if s.slot.h == nil {
		return
	}
	h, n := s.slot.h, 0
	if p := s.slot.phase(); p != phaseIdle {
		n = int(min(max(atomic.LoadInt64(&h.n), 0), ChunkSize))
		if p == phaseReading { // a terminal may have given less than was there
			n = len(bytes.TrimRight(s.slot.in()[:n], "\x00"))
		}
		s.slot.allocated = true
	} else if s.slot.pending() != nil {
		s.slot.allocated = true
	}
	if n == 0 {
		s.slot.set(phaseIdle, s.slot.turn())
		return
	}
	in, now := s.slot.in()[:n], time.Now()
	if s.slot.phase() == phaseWriting {
		now = time.Unix(0, atomic.LoadInt64(&h.now))
		records, keep, tail, _ := s.cut(nil, in, now)
		if s.log.has(records, atomic.LoadInt64(&h.off), atomic.LoadUint64(&h.ino)) {
			s.slot.commit(keep, tail)
			return
		}
	}
	s.Write(in, nil, now)
}
