// Package rpc is the one gRPC edge of Berth: how a program listens on a Unix socket for the kubelet, and what
// happens around every call — a request id, a deadline, a panic turned into Internal, the error vocabulary mapped
// to gRPC codes, and one log line. No other package maps errors to codes or logs calls.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Listen makes a Unix stream socket at path with mode 0660, in a directory that is made with mode 0700 if it is
// missing. A stale socket file, which nobody answers on, is replaced; a live one is FailedPrecondition and is
// left alone, so that two daemons never share a path.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return errs.FailedPrecondition.Errorf("%s exists and is no socket: remove it or configure another path", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(errs.FailedPrecondition.Errorf("%s is served by another process: stop it first", path), c.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errs.FailedPrecondition.Errorf("%s may be in use: %w", path, err)
	}
	return os.Remove(path)
}
