package shims

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// callLimit bounds a call whose caller set no earlier deadline. A hung shim costs its own pods time, and the first call
// that finds it; it gets no new pods until it answers.
const callLimit = 2 * time.Minute

// shim is one supervisor. Fields below pool are guarded by the pool's mu.
type shim struct {
	id, dir string
	pool    *Pool

	reserved int  // pods on their way into it
	draining bool // takes no new pods
	profiles map[string]bool

	// life is held while the process is replaced, across its start and the adoption, and for reading over every
	// attempt of a call: what a dying shim still answered is entered before its holdings are looked up, and the
	// new one is asked nothing before it has them.
	life sync.RWMutex

	hung atomic.Bool // its last call ran out of time

	mu    sync.Mutex
	conn  *v1.Client
	pid   int
	pidfd *os.File
}

// well says that a shim is connected and answers, as far as is known.
func (s *shim) well() bool {
	if s.hung.Load() {
		return false
	}
	select {
	case <-s.client().Done():
		return false
	default:
		return true
	}
}

// disconnect ends the connection, and what tells of the process.
func (s *shim) disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
	}
	if s.pidfd != nil {
		_ = s.pidfd.Close()
		s.pidfd = nil
	}
}

func (s *shim) client() *v1.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// call is one request. A connection that broke is waited for briefly, because the pool is reconnecting or has
// replaced the process. Requests are idempotent and sent again, but for Start and Exec: what a shim that died in
// the middle of one has done is the caller's to find out, by the cgroup.
func (s *shim) call(ctx context.Context, method string, req any, fds []*os.File, reply any) (out []*os.File, err error) {
	err = s.enter(ctx, method, req, fds, reply, func(got []*os.File) { out = got })
	return out, err
}

// enter is call for what the pool keeps: keep enters the descriptors of a good answer, and returns at once.
func (s *shim) enter(ctx context.Context, method string, req any, fds []*os.File, reply any, keep func([]*os.File)) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	once := method == v1.MethodStart || method == v1.MethodExec
	for retry := 0; ; retry++ {
		sent, err := s.attempt(ctx, method, req, fds, reply, keep)
		if (sent && once) || !errors.Is(err, errs.Unavailable) || retry == 40 {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// attempt sends a request once, if there is a connection.
func (s *shim) attempt(ctx context.Context, method string, req any, fds []*os.File, reply any, keep func([]*os.File)) (sent bool, err error) {
	s.life.RLock()
	defer s.life.RUnlock()
	c := s.client()
	select {
	case <-c.Done():
		return false, errs.Unavailable.Errorf("shim %s is not connected", s.id)
	default:
	}
	out, err := c.Call(ctx, method, req, fds, reply)
	s.hung.Store(errors.Is(err, context.DeadlineExceeded))
	if err == nil {
		keep(out)
	}
	return true, err
}

// start runs a new shim and connects to it.
func (p *Pool) start(ctx context.Context) (*shim, error) {
	var raw [4]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	id := hex.EncodeToString(raw[:])
	s := &shim{id: id, dir: filepath.Join(p.cfg.Dir, id), pool: p, profiles: map[string]bool{}}
	if err := p.exec(s); err != nil {
		return nil, fmt.Errorf("start shim %s: %w", id, errors.Join(err, os.RemoveAll(s.dir)))
	}
	hello, err := s.connect(ctx)
	if err != nil {
		kerr := p.cfg.Cgroups.Kill(s.group())
		p.discard(s)
		return nil, fmt.Errorf("start shim %s: %w", id, errors.Join(err, kerr))
	}
	p.mu.Lock()
	p.shims[id] = s
	p.mu.Unlock()
	p.log.Info("shim started", "shim", id, "pid", hello.Pid)
	return s, nil
}

// exec starts the process with its listening socket already open, so that there is nothing to wait or retry for.
func (p *Pool) exec(s *shim) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	sock := filepath.Join(s.dir, "sock")
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close() //nolint:errcheck // the child has it
	if err := os.Chmod(sock, 0o600); err != nil {
		return err
	}
	lf, err := l.File()
	if err != nil {
		return err
	}
	defer lf.Close() //nolint:errcheck // as above
	logf, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logf.Close() //nolint:errcheck // as above
	cmd := p.command(s, lf, logf)
	if err := p.born(s, cmd); err != nil {
		if cmd.Process != nil {
			err = errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
		return err
	}
	go func() { _ = cmd.Wait() }() //nolint:gocritic // reaps; a shim outlives the pool
	return nil
}

// connect dials, says hello and starts to receive. The caller merges what the reply lists.
func (s *shim) connect(ctx context.Context) (*v1.HelloReply, error) {
	return s.connectWithin(ctx, 10*time.Second)
}

func (s *shim) connectWithin(ctx context.Context, limit time.Duration) (*v1.HelloReply, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := v1.Dial(ctx, filepath.Join(s.dir, "sock"), s.event)
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	s.pool.wg.Go(func() {
		defer close(ended)
		_ = c.Run() // its end is seen by watch
	})
	var hello v1.HelloReply
	if _, err := c.Call(ctx, v1.MethodHello, v1.Hello{Version: v1.Version}, nil, &hello); err != nil {
		c.Close()
		return nil, err
	}
	if hello.Version != v1.Version {
		c.Close()
		return nil, errs.FailedPrecondition.Errorf("speaks protocol %d, this daemon %d: drain the node before this upgrade", hello.Version, v1.Version)
	}
	pidfd, err := unix.PidfdOpen(hello.Pid, 0)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("pidfd of %d: %w", hello.Pid, err)
	}
	s.mu.Lock()
	if s.pidfd != nil {
		_ = s.pidfd.Close()
	}
	s.conn, s.pid, s.pidfd = c, hello.Pid, os.NewFile(uintptr(pidfd), "pidfd")
	s.mu.Unlock()
	s.pool.wg.Go(func() { s.pool.watch(s, ended) })
	return &hello, nil
}

// alive says whether the process is there.
func (s *shim) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pidfd == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(s.pidfd.Fd()), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

// event handles what a shim says by itself.
func (s *shim) event(e v1.Event) {
	p := s.pool
	switch e.Name {
	case v1.EventExited:
		var x v1.Exited
		if err := json.Unmarshal(e.Body, &x); err != nil {
			p.log.Error("unreadable event", "shim", s.id, "error", err)
			return
		}
		p.ended(s, x)
	case v1.EventStdinClosed:
		var x v1.StdinClosed
		if err := json.Unmarshal(e.Body, &x); err == nil {
			p.dropHandle(x.Container, v1.HandleStdin)
		}
	case v1.EventOOM:
		var x v1.OOM
		if err := json.Unmarshal(e.Body, &x); err == nil {
			p.oom(x)
		}
	}
}
