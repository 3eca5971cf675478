package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/proto/rpc"
)

func TestToStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{errs.NotFound.Errorf("pod x"), codes.NotFound},
		{fmt.Errorf("run: %w", errs.ResourceExhausted.Errorf("disk")), codes.ResourceExhausted},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errors.New("x"), codes.Internal},
		{status.Error(codes.OutOfRange, "x"), codes.OutOfRange},
		{&errs.Prefixed{Prefix: "RegistryUnavailable", Err: errs.Unavailable.Errorf("x")}, codes.Unknown},
	} {
		if got := status.Code(rpc.ToStatus(c.err)); got != c.want {
			t.Errorf("ToStatus(%v) = %v, want %v", c.err, got, c.want)
		}
		if c.want == codes.NotFound && !errors.Is(rpc.FromStatus(rpc.ToStatus(c.err)), errs.NotFound) {
			t.Error("the way back loses the class")
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "s.sock")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.Listen(path); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a live socket was taken over: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := rpc.Listen(path)
	if err != nil {
		t.Fatalf("a stale socket was not replaced: %v", err)
	}
	var _ net.Listener = again
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.Listen(path); err == nil {
		t.Error("a regular file was replaced")
	}
}
