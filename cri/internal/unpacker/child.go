package unpacker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/proto/errs"
)

// child is this side of one child's life.
//
//	started --answer--> (killed, waited for)
//	   |                     ▲
//	   +--silence, a lie, ---+
//	      no progress, ctx
type child struct {
	process *os.Process
	ring    ring // the blob goes here

	fed     atomic.Int64 // bytes taken
	waiting atomic.Bool  // for the child, not for the blob's source
	reason  atomic.Pointer[string]

	heard  chan struct{} // closed when said is there
	said   *said
	cries  chan string // what it wrote to stderr
	ended  chan struct{}
	guards chan struct{} // closed by the watchdog
}

// said is a child's answer, or why there is none.
type said struct {
	answer *answer
	err    error
}

// start makes the pipes and the child, and begins to listen.
func (u *Unpacker) start(dir *os.File, diffID digest.Digest, limits layers.Limits) (*child, error) {
	tree, err := detached(int(dir.Fd()), "", unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("unpacker: %w", err)
	}
	defer tree.Close() //nolint:errcheck // the child's, or nobody's
	memory, mem, err := newMemory()
	if err != nil {
		return nil, fmt.Errorf("unpacker: %w", err)
	}
	defer memory.Close() //nolint:errcheck // mapped
	var ends [8]*os.File // lengths, answer, complaints, credits: read and write end of each
	for i := 0; i < len(ends); i += 2 {
		if ends[i], ends[i+1], err = os.Pipe(); err != nil {
			closeAll(ends[:i])
			return nil, errors.Join(fmt.Errorf("unpacker: %w", err), unix.Munmap(mem))
		}
	}
	p, err := u.nest.start(arguments(diffID, limits), ends[0], ends[3], ends[5], tree, memory, ends[7])
	closeAll([]*os.File{ends[0], ends[3], ends[5], ends[7]})
	if err != nil {
		closeAll([]*os.File{ends[1], ends[2], ends[4], ends[6]})
		return nil, errors.Join(fmt.Errorf("unpacker: %w", err), unix.Munmap(mem))
	}
	c := &child{
		process: p, ring: ring{mem: mem, lengths: ends[1], credits: ends[6]}, heard: make(chan struct{}), cries: make(chan string, 1),
		ended: make(chan struct{}), guards: make(chan struct{}),
	}
	// Where memory runs out, this is to go before containers do, and not stand under the daemon's own protection.
	_ = os.WriteFile("/proc/"+strconv.Itoa(p.Pid)+"/oom_score_adj", []byte(oomScore), 0) //nolint:errcheck // it has ended
	if u.cfg.Observe != nil {
		u.cfg.Observe(p.Pid)
	}
	go c.listen(ends[2])
	go c.note(ends[4])
	go c.guard(u.cfg)
	return c, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() //nolint:errcheck // pipes
	}
}

// slot waits for room.
func (c *child) slot() ([]byte, error) {
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	return c.ring.slot()
}

// listen waits for the answer.
func (c *child) listen(r *os.File) {
	a, err := listen(r)
	_ = r.Close() //nolint:errcheck // read side
	c.said = &said{a, err}
	close(c.heard)
}

// note keeps the beginning of what the child has to complain of.
func (c *child) note(r *os.File) {
	b, _ := io.ReadAll(io.LimitReader(r, 512)) //nolint:errcheck // what there is
	_, _ = io.Copy(io.Discard, r)              //nolint:errcheck // nor may it block
	_ = r.Close()                              //nolint:errcheck // read side
	c.cries <- strings.TrimSpace(string(b))
}

// kill ends the child; the first reason counts.
func (c *child) kill(why string) {
	c.reason.CompareAndSwap(nil, &why)
	_ = c.process.Kill() //nolint:errcheck // it is gone
}

// answer waits for what the child has to say and makes an error of silence and of lies.
func (c *child) answer() *said {
	c.waiting.Store(true)
	<-c.heard
	c.waiting.Store(false)
	if c.said.err == nil {
		return c.said
	}
	late := time.AfterFunc(time.Second, func() { c.kill("it closed its output and went on") })
	state, werr := c.process.Wait()
	late.Stop()
	close(c.ended)
	text := "the unpacker"
	if why := c.reason.Load(); why != nil {
		text += " was killed: " + *why
	} else if werr == nil {
		text += ": " + state.String()
	}
	cry := <-c.cries
	c.cries <- cry
	if cry != "" {
		text += ": " + printable(cry)
	}
	c.said = &said{err: errs.Aborted.Errorf("%s: %w", text, c.said.err)}
	return c.said
}

// end kills the child, waits for it, and for everything that was started for it.
func (c *child) end() {
	c.kill("it was done")
	select {
	case <-c.ended:
	default:
		_, _ = c.process.Wait() // what it was is known
		close(c.ended)
	}
	<-c.heard
	<-c.cries
	<-c.guards
	c.ring.close()
}

// failure is the error in an answer, or that there is none.
func (s *said) failure() error {
	switch {
	case s.err != nil:
		return s.err
	case s.answer.Failure != nil:
		return s.answer.Failure.err()
	}
	return nil
}

// result is what an answer says, if it can be true.
func (s *said) result(limits layers.Limits) (*layers.Result, error) {
	res, err := s.answer.Result.Unquote()
	if err == nil {
		err = res.Check(limits)
	}
	if err != nil {
		return nil, errs.Aborted.Errorf("the unpacker: %w: %w", errLie, err)
	}
	return &res, nil
}

// guard kills a child that does nothing, or takes too long, while it is waited for.
func (c *child) guard(cfg Config) {
	defer close(c.guards)
	tick := time.NewTicker(max(time.Millisecond, min(cfg.Stall, cfg.Patience)/8))
	defer tick.Stop()
	last, fed, used := time.Now(), int64(-1), ""
	var waited time.Duration
	for before := last; ; {
		select {
		case <-c.ended:
			return
		case now := <-tick.C:
			f, u := c.fed.Load(), c.used()
			if !c.waiting.Load() || f != fed || u != used {
				last, fed, used = now, f, u
			}
			if c.waiting.Load() {
				waited += now.Sub(before)
			}
			before = now
			switch {
			case now.Sub(last) > cfg.Stall:
				c.kill(fmt.Sprintf("no progress for %v", cfg.Stall))
			case waited > cfg.Patience:
				c.kill(fmt.Sprintf("not done after %v", cfg.Patience))
			}
		}
	}
}

// used is the child's processor time, user and system, in the kernel's words (proc(5), stat, fields 14 and 15).
func (c *child) used() string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.process.Pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	if f := strings.Fields(rest); len(f) > 12 {
		return f[11] + " " + f[12]
	}
	return ""
}
