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
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	} else if err != nil {
		return errs.FailedPrecondition.Errorf("%s may be in use: %w", path, err)
	}
	pid, err := listener(c.(*net.UnixConn))
	if err := errors.Join(err, c.Close()); err != nil {
		return errs.FailedPrecondition.Errorf("%s may be in use: %w", path, err)
	}
	if pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return os.Remove(path)
	}
	return errs.FailedPrecondition.Errorf("%s is served by process %d: stop it first", path, pid)
}

// listener is the pid of the process that made the listening socket (SO_PEERCRED, unix(7)). That process may be dead:
// a child of a killed daemon holds the socket for the moment between its fork and its exec.
func listener(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cerr != nil {
		return 0, errors.Join(err, cerr)
	}
	return int(cred.Pid), nil
}
