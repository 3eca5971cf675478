// Package stream serves exec, attach and port-forward over SPDY and WebSocket, at one-time URLs on a loopback address. The
// URLs are its own, most protocols those of k8s.io/cri-streaming.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/pod"
)

// headerLimit is the most bytes of a request's line and headers: those of a client's browser, passed on by API server and
// kubelet, are far fewer.
const headerLimit = 64 << 10

// Server is the streaming server.
type Server struct {
	*front
	listener net.Listener
}

// New listens on address (host:port, port 0 for any).
func New(address string, pods *pod.Manager) (*Server, error) {
	l, err := net.Listen("tcp", address) //nolint:noctx // at start
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	return &Server{front: newFront("http://"+l.Addr().String(), runtime{pods}), listener: l}, nil
}

// Address is where the server listens.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Run serves until ctx ends; open streams are cut then.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{Handler: s.front, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: headerLimit}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.listener) }() //nolint:gocritic // waited for below
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		err := srv.Close()
		if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	}
}

// runtime connects the library's streams to the domain.
type runtime struct{ pods *pod.Manager }

// ExecInContainer implements remotecommand.Executor. A process that exits with another code than 0 is the library's
// CodeExitError.
func (r runtime) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	sizes, stop := translate(resize)
	defer stop()
	code, err := r.pods.Exec(ctx, id, cmd, pod.Streams{In: in, Out: out, Err: errOut, TTY: tty, Resize: sizes})
	return exitError(code, err)
}

// exitError is how the library wants to be told of an exit code.
func exitError(code int, err error) error {
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Code: code, Err: fmt.Errorf("command terminated with exit code %d", code)}
	}
	return err
}

// AttachContainer implements remotecommand.Attacher.
func (r runtime) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	sizes, stop := translate(resize)
	defer stop()
	return r.pods.Attach(ctx, id, pod.Streams{In: in, Out: out, Err: errOut, TTY: tty, Resize: sizes})
}

// PortForward implements portforward.PortForwarder: it dials the pod's loopback from inside its network namespace.
func (r runtime) PortForward(ctx context.Context, id, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close() //nolint:errcheck // the client's side reports its own errors
	p, err := r.pods.Pod(id)
	if err != nil {
		return err
	}
	ns, err := r.pods.NamespacePath(p)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	conn, err := network.Dial(ctx, ns, port)
	if err != nil {
		return err
	}
	return network.Forward(conn, stream)
}

// translate passes sizes on until stop is called.
func translate(in <-chan remotecommand.TerminalSize) (<-chan pod.Size, func()) {
	if in == nil {
		return nil, func() {}
	}
	out, quit := make(chan pod.Size), make(chan struct{})
	go func() { //nolint:gocritic // ends with stop
		defer close(out)
		for {
			select {
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- pod.Size{Width: s.Width, Height: s.Height}:
				case <-quit:
					return
				}
			case <-quit:
				return
			}
		}
	}()
	return out, func() { close(quit) }
}
