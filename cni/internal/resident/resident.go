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

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/plugin"
	"github.com/berth-project/berth/cni/internal/spec"
	v1 "github.com/berth-project/berth/proto/cniagent/v1"
)

// atOnce bounds the invocations that are served; more wait in the socket's queue.
const atOnce = 64

// patience is how long a request may take to arrive and an answer to be taken.
const patience = 10 * time.Second

// Server serves one socket. Use [Listen].
type Server struct {
	l   *net.UnixListener
	log *slog.Logger
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
		reply = invoke(req, hangup(c))
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
	return ""
}

// hangup watches the connection, on which nothing more is to come: the function it returns is an error once the runtime
// has gone, as when it would have killed the plugin.
func hangup(c *net.UnixConn) func() error {
	gone := make(chan struct{})
	go func() { // ends with the connection
		defer close(gone)
		_ = c.SetReadDeadline(time.Time{})
		_, _ = c.Read(make([]byte, 1))
	}()
	return func() error {
		select {
		case <-gone:
			return spec.Errorf(spec.CodeTryAgain, "the runtime has gone")
		default:
			return nil
		}
	}
}

// invoke is one start of the plugin, in this process.
func invoke(req v1.Request, wanted func() error) v1.Reply {
	env := map[string]string{}
	for _, kv := range req.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	var out, errOut bytes.Buffer
	code := plugin.Run(plugin.Invocation{
		Name: "berth", Getenv: func(k string) string { return env[k] }, Environ: req.Env, Resident: true, Wanted: wanted,
		Stdin: bytes.NewReader(req.Stdin), Stdout: &out, Stderr: &errOut,
	})
	return v1.Reply{Exit: code, Stdout: out.Bytes(), Stderr: errOut.Bytes()}
}
