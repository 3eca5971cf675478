// Package netcluster makes clusters of network namespaces: nodes on one switch, a real control plane, and on each node a
// network agent, berth-netd or flannel. Tests and benchmarks share it. It must run in a network and mount namespace of
// its own (harness.Isolate).
package netcluster

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// NS is a network namespace that lives as long as its descriptor and the processes in it.
type NS struct{ f *os.File }

// NewNS makes one with its loopback up.
func NewNS() (*NS, error) {
	type made struct {
		f   *os.File
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ch <- made{f, err}
	}()
	m := <-ch
	if m.err != nil {
		return nil, fmt.Errorf("network namespace: %w", m.err)
	}
	n := &NS{m.f}
	return n, n.Run("ip link set lo up")
}

// Close gives the namespace up.
func (n *NS) Close() error { return n.f.Close() }

// Path names it for this process's children.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.f.Fd()) }

// Do runs fn on a thread in the namespace, which is thrown away afterwards.
func (n *NS) Do(fn func() error) error {
	ch := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			ch <- err
			return
		}
		ch <- fn()
	}()
	return <-ch
}

// Try runs one command, no shell, and returns what it printed.
func (n *NS) Try(line string) (string, error) {
	args := strings.Fields(line)
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput() //nolint:gosec // the test's own
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return string(out), nil
}

// Run is Try for several commands, up to the first that fails.
func (n *NS) Run(lines ...string) error {
	for _, line := range lines {
		if _, err := n.Try(line); err != nil {
			return err
		}
	}
	return nil
}

// Sysctl sets a value below /proc/sys/net of the namespace.
func (n *NS) Sysctl(key, value string) error {
	return n.Do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644) }) //nolint:gosec // a sysctl
}
