package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/proto/errs"
)

// Path is where a pod's network namespace is pinned.
func (n *Network) Path(podID string) string {
	return filepath.Join(n.cfg.NetnsDir, "berth-"+podID[:min(len(podID), 32)])
}

// Pin binds an open network namespace to the pod's path. Repeating it is fine.
func (n *Network) Pin(podID string, ns *os.File) (string, error) {
	path := n.Path(podID)
	if err := os.MkdirAll(n.cfg.NetnsDir, 0o755); err != nil { //nolint:gosec // ip-netns(8) wants it readable
		return "", err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	var st unix.Statfs_t
	if unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC {
		return path, nil
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return "", errors.Join(fmt.Errorf("pin network namespace on %s: %w", path, err), os.Remove(path))
	}
	return path, nil
}

// Unpin removes the pod's path. One that is not there is fine.
func (n *Network) Unpin(podID string) error {
	path := n.Path(podID)
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unpin %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Dial connects to a TCP port of a pod on its loopback, v4 first, as kubectl port-forward wants. The thread that
// entered the namespace is given up if it cannot be brought back, so that no other goroutine runs there.
func Dial(ctx context.Context, ns *os.File, port int32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() { //nolint:gocritic // ends with its dial, at most the timeout below
		conn, err := dialLocked(ctx, ns, port)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialLocked(ctx context.Context, ns *os.File, port int32) (net.Conn, error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer home.Close() //nolint:errcheck // read only
	if err := netns.Set(netns.NsHandle(ns.Fd())); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() {
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		} // else the locked thread dies with this goroutine
	}()
	d := net.Dialer{Timeout: 30 * time.Second, FallbackDelay: -1} // no second goroutine, which would be elsewhere
	var all []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err == nil {
			return conn, nil
		}
		all = append(all, err)
	}
	return nil, errs.Unavailable.Errorf("port %d: %w", port, errors.Join(all...))
}
