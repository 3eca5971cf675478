// Package netlab makes small networks of network namespaces for tests: switches, routers, nodes and pods, joined by veth
// pairs. Nothing is put into the machine's own namespaces; a namespace ends with its descriptor and the processes in it.
package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct {
	f *os.File
	t testing.TB
}

// Bare makes a namespace as a runtime makes one for a pod: with nothing set and nothing up. It is given up at the test's end.
func Bare(t testing.TB) *NS {
	t.Helper()
	ch := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			close(ch)
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		ch <- f
	}()
	f := <-ch
	if f == nil {
		t.FailNow()
	}
	n := &NS{f: f, t: t}
	t.Cleanup(n.Close)
	return n
}

// Close gives the namespace up before the test's end.
func (n *NS) Close() {
	if err := n.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		n.t.Error(err)
	}
}

// New makes a namespace that is a node's: its loopback is up, and its addresses serve at once.
func New(t testing.TB) *NS {
	t.Helper()
	n := Bare(t)
	n.Run("ip link set lo up")
	n.Sysctl("ipv6/conf/default/accept_dad", "0") // a second for each address
	return n
}

// Path names the namespace for this process's children.
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

// Try is Exec of a line's words.
func (n *NS) Try(line string) (string, error) { return n.Exec(strings.Fields(line)...) }

// Exec runs one command, no shell, in the namespace and returns what it printed.
func (n *NS) Exec(args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		out, err = exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Run is Try for what must succeed.
func (n *NS) Run(lines ...string) string {
	n.t.Helper()
	var out string
	for _, line := range lines {
		one, err := n.Try(line)
		if err != nil {
			n.t.Fatal(err)
		}
		out += one
	}
	return out
}

// Sysctl sets a value below /proc/sys/net of the namespace.
func (n *NS) Sysctl(key, value string) {
	n.t.Helper()
	if err := n.Do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644) }); err != nil { //nolint:gosec // a sysctl
		n.t.Fatal(err)
	}
}

// Process is a program in a namespace.
type Process struct {
	cmd    *exec.Cmd
	done   chan struct{}
	err    error
	stderr bytes.Buffer
}

// Start starts a program in the namespace. What still runs at the test's end is killed and waited for.
func (n *NS) Start(env []string, name string, args ...string) *Process {
	n.t.Helper()
	p := &Process{cmd: exec.Command(name, args...), done: make(chan struct{})} //nolint:gosec // the test's own
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stderr, &p.stderr
	if err := n.Do(p.cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }() //nolint:gocritic // waited for
	n.t.Cleanup(func() { p.Kill() })
	return p
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() { p.Signal(unix.SIGKILL); <-p.done }

// Stop sends SIGTERM and waits for the end.
func (p *Process) Stop() { p.Signal(unix.SIGTERM); <-p.done }

// Signal sends a signal; a process that has ended gets none.
func (p *Process) Signal(sig unix.Signal) {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		fmt.Fprintln(os.Stderr, err)
	}
}

// Ended says whether the process has ended, within d.
func (p *Process) Ended(d time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(d):
		return false
	}
}

// Output is what the process has printed; only after its end.
func (p *Process) Output() string { return p.stderr.String() }

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Within is a promised time on a machine that has nothing else to do; where BERTH_TORTURE does not ask for the promise
// itself, a busy one has ten times as long to do the same.
func Within(d time.Duration) time.Duration {
	if os.Getenv("BERTH_TORTURE") != "" {
		return d
	}
	return 10 * d
}

// Until calls ok every 20 ms until it is true, for at most Within(d), and says how long that took.
func Until(t testing.TB, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	d = Within(d)
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("not within %s: %s", d, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}
