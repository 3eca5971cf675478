package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-project/berth/cri/internal/config"
	"github.com/berth-project/berth/cri/internal/pod"
)

func empty(t *testing.T) *pod.Manager {
	t.Helper()
	return pod.New(pod.Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, nil, nil, nil)
}

// TestLoopback: as it is installed, nobody beyond the node reaches the server, and a URL works once at most.
func TestLoopback(t *testing.T) {
	s, err := New(config.Default().Stream.Address, empty(t))
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.Address())
	if err != nil || !net.ParseIP(host).IsLoopback() || port == "0" {
		t.Errorf("listens on %s", s.Address())
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	resp, err := s.GetExec(&cri.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.GetUrl())
	if err != nil || u.Host != s.Address() || len(strings.TrimPrefix(u.Path, "/exec/")) < 26 { // 128 bits, five a letter
		t.Errorf("%s", resp.GetUrl())
	}
	client := &http.Client{Timeout: 5 * time.Second}
	for path, want := range map[string]int{"/exec/nobodysToken": http.StatusNotFound, "/": http.StatusNotFound} {
		r, err := client.Get("http://" + s.Address() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	client.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.DialTimeout("tcp", s.Address(), time.Second); err == nil {
		t.Error("it listens after its end")
	}
}

// TestRequests: what no client can mean is refused.
func TestRequests(t *testing.T) {
	s, err := New("127.0.0.1:0", empty(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.listener.Close() })
	if _, err := s.GetExec(&cri.ExecRequest{ContainerId: "c", Cmd: []string{"x"}}); err == nil {
		t.Error("exec without a stream")
	}
	if _, err := s.GetExec(&cri.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true, Stderr: true, Tty: true}); err == nil {
		t.Error("a terminal with a stderr of its own")
	}
	if _, err := s.GetExec(&cri.ExecRequest{Cmd: []string{"x"}, Stdout: true}); err == nil {
		t.Error("exec in no container")
	}
	if _, err := s.GetAttach(&cri.AttachRequest{ContainerId: "c"}); err == nil {
		t.Error("attach without a stream")
	}
	if _, err := s.GetPortForward(&cri.PortForwardRequest{}); err == nil {
		t.Error("port-forward to no pod")
	}
}

// TestExitCode: the library turns this error, and no other, into the client's exit code.
func TestExitCode(t *testing.T) {
	if err := exitError(0, nil); err != nil {
		t.Errorf("code 0: %v", err)
	}
	var exit utilexec.ExitError
	if err := exitError(7, nil); !errors.As(err, &exit) || exit.ExitStatus() != 7 || !exit.Exited() {
		t.Errorf("code 7: %v", err)
	}
	if err := exitError(7, io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &exit) {
		t.Errorf("a failure: %v", err)
	}
}

// TestTranslate: sizes pass until the stream, or the command, ends.
func TestTranslate(t *testing.T) {
	in := make(chan remotecommand.TerminalSize)
	out, stop := translate(in)
	in <- remotecommand.TerminalSize{Width: 80, Height: 24}
	if got := <-out; got != (pod.Size{Width: 80, Height: 24}) {
		t.Errorf("%+v", got)
	}
	in <- remotecommand.TerminalSize{Width: 1, Height: 1} // taken, and not wanted any more
	stop()
	for range out { // ends
	}
	out, stop = translate(nil)
	if out != nil {
		t.Error("sizes of a client that has none")
	}
	stop()
	closed := make(chan remotecommand.TerminalSize)
	close(closed)
	out, stop = translate(closed)
	if _, ok := <-out; ok {
		t.Error("a size out of nowhere")
	}
	stop()
}
