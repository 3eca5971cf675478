// Package resident serves berth-cni's verbs from a process that stays: what a runtime would execute the plugin for, it asks
// for over a socket (proto/cniagent/v1), and saves the start of a process, which is most of what attaching a pod takes.
// State, locks and repairs are the plugin's own; both may work side by side.
package resident

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/netns"
	"github.com/berth-project/berth/cni/internal/plugin"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	v1 "github.com/berth-project/berth/proto/cniagent/v1"
)

// atOnce bounds the invocations that are served; more wait in the socket's queue.
const atOnce = 64

// patience is how long a request may take to arrive and an answer to be taken.
const patience = 10 * time.Second

// Server serves one socket. Use [Listen].
type Server struct {
	l     *net.UnixListener
	log   *slog.Logger
	queue state.Queue
}

// Listen makes the socket, for root alone. One that is left of an earlier agent is removed: the caller holds the lock.
func Listen(path string, log *slog.Logger) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &Server{l: l, log: log}, os.Chmod(path, 0o600)
}

// Run serves until ctx ends, and then waits for what is under way: nothing is left half done.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.l.Close() })
	defer stop()
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := s.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			s.log.Warn("CNI socket", "error", err)
			time.Sleep(patience / 100) // out of descriptors, perhaps
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := s.serve(c); err != nil {
				s.log.Warn("CNI request", "error", err)
			}
		})
	}
}

func (s *Server) serve(c *net.UnixConn) error {
	defer c.Close() //nolint:errcheck // answered, or gone
	if err := errors.Join(v1.CheckPeer(c), c.SetDeadline(time.Now().Add(patience))); err != nil {
		return err
	}
	var req v1.Request
	if err := v1.Read(c, &req); err != nil {
		return err
	}
	reply := v1.Reply{Refused: refusal(req)}
	if reply.Refused == "" {
		reply = invoke(req, &state.Turn{Wanted: hangup(c), Queue: &s.queue})
	}
	return errors.Join(c.SetWriteDeadline(time.Now().Add(patience)), v1.Write(c, reply))
}

func refusal(req v1.Request) string {
	if req.Version != v1.Version {
		return fmt.Sprintf("protocol version %d, this agent speaks %d", req.Version, v1.Version)
	}
	if typ := netconf.TypeOf(req.Stdin); typ != "" && typ != "berth" {
		return fmt.Sprintf("type %q is served by executing it", typ)
	}
	if req.Netns != nil {
		path := variable(req.Env, "CNI_NETNS")
		if here, err := v1.Identify(path); err != nil || *here != *req.Netns {
			return fmt.Sprintf("%s is another namespace here: this agent does not see the runtime's mounts (%v)", path, err)
		}
	}
	return ""
}

// hangup is a function whose error says that the runtime has gone, as when it would have killed the plugin.
func hangup(c *net.UnixConn) func() error {
	return func() error {
		raw, err := c.SyscallConn()
		gone := false
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // a descriptor
				n, perr := unix.Poll(p, 0)                                  // EINTR: asked again by the next
				gone = perr == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
			})
		}
		if err != nil || gone {
			return spec.Errorf(spec.CodeTryAgain, "the runtime has gone")
		}
		return nil
	}
}

// Able says why this process could not attach pods: entering a network namespace takes CAP_SYS_ADMIN.
func Able() error {
	here, err := netns.Current()
	if err != nil {
		return err
	}
	return errors.Join(here.Do(func() error { return nil }), here.Close())
}

func variable(env []string, key string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

// invoke is one start of the plugin, in this process.
func invoke(req v1.Request, turn *state.Turn) v1.Reply {
	var out, errOut bytes.Buffer
	code := plugin.Run(plugin.Invocation{
		Name: "berth", Getenv: func(k string) string { return variable(req.Env, k) }, Environ: req.Env, Turn: turn,
		Stdin: bytes.NewReader(req.Stdin), Stdout: &out, Stderr: &errOut,
	})
	return v1.Reply{Exit: code, Stdout: out.Bytes(), Stderr: errOut.Bytes()}
}
