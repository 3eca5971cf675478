package stdio

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
	"github.com/berth-project/berth/shim/internal/crilog"
)

// Mover makes the IO of containers on one poller and one pool of buffers.
type Mover struct {
	poller *Poller
	pool   sync.Pool
}

// NewMover makes a mover on a running poller.
func NewMover(p *Poller) *Mover {
	return &Mover{poller: p, pool: sync.Pool{New: func() any { return new(scratch) }}}
}

// IO is the standard streams of one container.
type IO struct {
	log  *crilog.Log
	once bool
	done chan struct{} // closed when all outputs have ended
	wg   sync.WaitGroup
	outs []*output

	mu       sync.Mutex
	left     int // outputs that have not ended
	stdin    *os.File
	console  bool
	inputs   []*os.File // attached clients' input
	onClosed func()     // standard input was closed for StdinOnce
}

// New takes the container's descriptors by the names of proto/shim/v1 (stdin, stdout, stderr, console) and begins to copy
// its output to log. closed is called when the standard input was closed because its first client's has ended.
func (m *Mover) New(files map[string]*os.File, log *crilog.Log, once bool, closed func()) (*IO, error) {
	c := &IO{log: log, once: once, done: make(chan struct{}), stdin: files[v1.HandleStdin], onClosed: closed}
	add := func(name string, f *os.File) {
		if f != nil {
			c.left++
			c.outs = append(c.outs, &output{
				name: name, pool: &m.pool, log: log.Stream(name), done: make(chan struct{}), drained: c.ended, file: f,
			})
		}
	}
	if console := files[v1.HandleConsole]; console != nil {
		c.console, c.stdin = true, dup(console)
		add(v1.HandleStdout, console)
	} else {
		add(v1.HandleStdout, files[v1.HandleStdout])
		add(v1.HandleStderr, files[v1.HandleStderr])
	}
	if c.left == 0 {
		close(c.done)
	}
	for _, o := range c.outs {
		if err := o.start(m.poller); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

func (c *IO) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// Done is closed when the outputs have ended and are in the log.
func (c *IO) Done() <-chan struct{} { return c.done }

// Reopen makes the log file anew.
func (c *IO) Reopen() error { return c.log.Reopen() }

// Attach connects a client: files, which it owns from now on, are one for each of names.
func (c *IO) Attach(names []string, files []*os.File) error {
	byName := map[string]*os.File{}
	for i, name := range names {
		f, err := pollable(files[i])
		if err != nil {
			return errors.Join(err, closeFiles(byName, files[i+1:]))
		}
		byName[name] = f
	}
	for _, o := range c.outs {
		if f := byName[o.name]; f != nil {
			delete(byName, o.name)
			o.attach(newSink(f, &c.wg))
		}
	}
	if f := byName[v1.HandleStdin]; f != nil {
		delete(byName, v1.HandleStdin)
		c.attachInput(f)
	}
	return closeFiles(byName, nil) // a stream the container does not have
}

func closeFiles(m map[string]*os.File, rest []*os.File) error {
	for _, f := range m {
		_ = f.Close()
	}
	for _, f := range rest {
		_ = f.Close()
	}
	return nil
}

// pollable makes f's twin that the Go runtime polls, and closes f.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close() //nolint:errcheck // the twin is used
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errs.Internal.Errorf("attach: %w", err)
	}
	return os.NewFile(uintptr(fd), "attach"), nil //nolint:gosec // a descriptor
}

// attachInput copies a client's input to the container until either ends.
func (c *IO) attachInput(from *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	to := dup(c.stdin)
	if to == nil {
		_ = from.Close()
		return
	}
	c.inputs = append(c.inputs, from)
	c.wg.Go(func() {
		defer to.Close() //nolint:errcheck // a pipe
		_, err := io.Copy(onlyWriter{to}, onlyReader{from})
		c.mu.Lock()
		c.inputs = slices.DeleteFunc(c.inputs, func(f *os.File) bool { return f == from })
		c.mu.Unlock()
		_ = from.Close()
		if c.once && err == nil && !c.console {
			c.CloseStdin()
		}
	})
}

// onlyReader and onlyWriter keep io.Copy from splice(2), which would need both ends in one mode.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// CloseStdin closes the container's standard input.
func (c *IO) CloseStdin() {
	c.mu.Lock()
	f := c.stdin
	c.stdin = nil
	c.mu.Unlock()
	if f != nil {
		_ = f.Close()
		if c.onClosed != nil {
			c.onClosed()
		}
	}
}

// EndInput drops the attached clients' inputs, once the container has ended.
func (c *IO) EndInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.inputs {
		_ = f.Close()
	}
	if c.stdin != nil {
		_ = c.stdin.Close()
		c.stdin = nil
	}
}

// Handles duplicates the descriptors that are still open, by name.
func (c *IO) Handles() (names []string, files []*os.File) {
	add := func(name string, f *os.File) {
		if f != nil {
			names, files = append(names, name), append(files, f)
		}
	}
	if c.console {
		add(v1.HandleConsole, c.outs[0].dup())
		return names, files
	}
	c.mu.Lock()
	add(v1.HandleStdin, dup(c.stdin))
	c.mu.Unlock()
	for _, o := range c.outs {
		add(o.name, o.dup())
	}
	return names, files
}

// Close ends all streams, whether all was read or not, and closes the log. Attached readers get what is queued.
func (c *IO) Close() {
	c.EndInput()
	for _, o := range c.outs {
		o.close()
	}
	_ = c.log.Close()
}
