package stdio

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/shim/internal/crilog"
)

// chunk is how much is read at once: less than a pipe holds, so that a busy container's log is cut often enough.
const chunk = crilog.ChunkSize

// scratch is the memory of one copy while it runs.
type scratch struct {
	in  [chunk]byte
	out []byte
}

// output is one output stream of a container.
type output struct {
	name string
	pool *sync.Pool
	log  *crilog.Stream
	done chan struct{} // closed at the end of the stream
	// drained is called when the end was met, by the copying goroutine.
	drained func()

	mu    sync.Mutex // held while copying; guards what follows
	file  *os.File   // nil once the stream has ended
	watch *Watch
	sinks []*sink
}

// start begins to watch the stream.
func (o *output) start(p *Poller) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	o.watch, err = p.Watch(int(o.file.Fd()), o.copy)
	return err
}

// copy reads what is there and writes it to the log and to the sinks.
func (o *output) copy() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return
	}
	fd := int(o.file.Fd())
	s := o.pool.Get().(*scratch) //nolint:forcetypeassert // the pool holds nothing else
	defer o.pool.Put(s)
	for Readable(fd) {
		in, journaled := o.buffer(fd, s)
		n, err := unix.Read(fd, in)
		if err != nil || n <= 0 {
			if journaled {
				o.log.Cancel()
			}
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
				continue
			}
			o.end() // a terminal whose other side is gone gives EIO
			return
		}
		o.feed(in[:n])
		s.out = o.log.Write(in[:n], s.out, time.Now())
	}
	o.log.Rest()
	if o.watch.Arm() != nil {
		o.end()
	}
}

// buffer is where to read what fd has: the log's journal, if it takes it, else s.
func (o *output) buffer(fd int, s *scratch) ([]byte, bool) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil || n <= 0 {
		return s.in[:], false // the end of the stream, most likely
	}
	if in := o.log.Buffer(n); in != nil {
		return in, true
	}
	return s.in[:], false
}

// feed hands data to every sink and drops those that do not keep up.
func (o *output) feed(data []byte) {
	keep := o.sinks[:0]
	for _, s := range o.sinks {
		if s.put(data) {
			keep = append(keep, s)
		}
	}
	clear(o.sinks[len(keep):])
	o.sinks = keep
}

// end closes the stream; o.mu is held.
func (o *output) end() {
	if o.file == nil {
		return
	}
	o.watch.Remove()
	_ = o.file.Close()
	o.file = nil
	o.log.End(time.Now())
	for _, s := range o.sinks {
		s.finish()
	}
	o.sinks = nil
	close(o.done)
	o.drained()
}

// close ends the stream whether all was read or not.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end()
}

// attach adds a sink; one that comes after the end is finished at once.
func (o *output) attach(s *sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		s.finish()
		return
	}
	o.sinks = append(o.sinks, s)
}

// dup duplicates the stream's descriptor, or returns nil after its end.
func (o *output) dup() *os.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	return dup(o.file)
}

func dup(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name()) //nolint:gosec // a descriptor
}
