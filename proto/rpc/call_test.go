package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/proto/rpc"
)

// service does what the request's one word says. gRPC's health service stands for ours: one unary call, one stream.
type service struct {
	health.UnimplementedHealthServer
}

const secret = "hunter2"

func act(ctx context.Context, word string) error {
	switch word {
	case "panic":
		panic("broken invariant")
	case "deadline":
		at, ok := ctx.Deadline()
		if !ok {
			return errs.FailedPrecondition.Errorf("none")
		}
		return errs.AlreadyExists.Errorf("%d s", int(time.Until(at).Round(time.Second).Seconds()))
	case "id":
		if rpc.RequestID(ctx) == "" {
			return errs.Internal.Errorf("no request id")
		}
	case "prefixed":
		return &errs.Prefixed{Prefix: "RegistryUnavailable", Err: errs.Unavailable.Errorf("refused")}
	case "fail":
		return errs.ResourceExhausted.Errorf("disk full")
	case "gone":
		return errs.NotFound.Errorf("pod x")
	}
	return nil
}

func (service) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	word, _, _ := strings.Cut(r.GetService(), " ")
	return &health.HealthCheckResponse{}, act(ctx, word)
}

func (service) Watch(r *health.HealthCheckRequest, s grpc.ServerStreamingServer[health.HealthCheckResponse]) error {
	word, _, _ := strings.Cut(r.GetService(), " ")
	return act(s.Context(), word)
}

// seen is what the observer was told.
type seen struct {
	method string
	code   codes.Code
}

type lab struct {
	client health.HealthClient
	log    bytes.Buffer
	mu     sync.Mutex
	calls  []seen
	stop   func()
}

func newLab(t *testing.T, endless ...string) *lab {
	t.Helper()
	l := &lab{}
	listener, err := rpc.Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	edge := rpc.NewEdge(slog.New(slog.NewTextHandler(&l.log, &slog.HandlerOptions{Level: slog.LevelDebug})), time.Minute, endless,
		func(method string, code codes.Code, _ time.Duration) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.calls = append(l.calls, seen{method, code})
		})
	srv := grpc.NewServer(edge.Options()...)
	health.RegisterHealthServer(srv, service{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(listener) }()
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	l.client = health.NewHealthClient(conn)
	l.stop = sync.OnceFunc(func() {
		_ = conn.Close()
		srv.GracefulStop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *lab) unary(ctx context.Context, word string) error {
	_, err := l.client.Check(ctx, &health.HealthCheckRequest{Service: word})
	return err
}

func (l *lab) stream(ctx context.Context, word string) error {
	s, err := l.client.Watch(ctx, &health.HealthCheckRequest{Service: word})
	if err == nil {
		_, err = s.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// TestCalls: both kinds of call come out of the edge alike.
func TestCalls(t *testing.T) {
	l := newLab(t)
	for kind, call := range map[string]func(context.Context, string) error{"unary": l.unary, "stream": l.stream} {
		for _, c := range []struct {
			word string
			code codes.Code
			says string
		}{
			{"ok", codes.OK, ""},
			{"id", codes.OK, ""},
			{"panic", codes.Internal, "broken invariant"},
			{"fail", codes.ResourceExhausted, "disk full"},
			{"gone", codes.NotFound, "pod x"},
			{"prefixed", codes.Unknown, "RegistryUnavailable: refused"},
			{"deadline", codes.AlreadyExists, "60 s"},
		} {
			err := call(t.Context(), c.word+" "+secret)
			if s := status.Convert(err); s.Code() != c.code || !strings.Contains(s.Message(), c.says) {
				t.Errorf("%s %s: %v", kind, c.word, err)
			}
		}
		// a caller's own deadline stays
		ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
		if err := call(ctx, "deadline"); !strings.Contains(err.Error(), "9 s") {
			t.Errorf("%s: %v", kind, err)
		}
		cancel()
		// a panic harms its own call alone
		if err := call(t.Context(), "ok"); err != nil {
			t.Errorf("%s after a panic: %v", kind, err)
		}
	}
	l.stop()
	if len(l.calls) != 18 {
		t.Errorf("the observer saw %d calls", len(l.calls))
	}
	log := l.log.String()
	if strings.Contains(log, secret) {
		t.Errorf("what a client sent is in the log:\n%s", log)
	}
	if lines := strings.Count(log, "msg=call"); lines != 18 {
		t.Errorf("%d lines for 18 calls", lines)
	}
	// failures are loud, answers are quiet
	for line := range strings.Lines(log) {
		loud := strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")
		if strings.Contains(line, "code=NotFound") && loud || strings.Contains(line, "code=OK") && loud || strings.Contains(line, "code=ResourceExhausted") && !loud {
			t.Error(line)
		}
		if strings.Contains(line, "msg=call") && (!strings.Contains(line, "request=") || !strings.Contains(line, "took=")) {
			t.Error(line)
		}
	}
	if n := strings.Count(log, "stack="); n != 2 {
		t.Errorf("%d stacks for 2 panics", n)
	}
}

// TestEndless: a watch or a pull has no deadline but its client's.
func TestEndless(t *testing.T) {
	l := newLab(t, health.Health_Watch_FullMethodName)
	if err := l.stream(t.Context(), "deadline"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("stream: %v", err)
	}
	if err := l.unary(t.Context(), "deadline"); status.Code(err) != codes.AlreadyExists {
		t.Errorf("unary: %v", err)
	}
}
