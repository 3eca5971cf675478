// Package killpoint finds every system call by which a process changes something, and kills the process before any one of
// them, or lets that one fail. It is strace and its fault injection with one difference: strace counts calls for each thread by itself, and which
// thread of a Go program makes which call is chance; here a call is known by what it does ("renameat .../pod/ID"), so that
// the same one is met again in another run.
//
// The tracing is done by a second process of the same program, because a parent that traces its child cannot wait for its
// end in the ordinary way: the program's main must begin with [Child].
package killpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv tells the second process what to do: "PID ERRNO POINT"; no point is to list them, errno 0 to kill.
const childEnv = "BERTH_KILLPOINT"

// Child does the second process's work and never returns there. In the first it returns at once.
func Child() {
	order := os.Getenv(childEnv)
	if order == "" {
		return
	}
	f := append(strings.SplitN(order, " ", 3), "", "")
	pid, perr := strconv.Atoi(f[0])
	errno, eerr := strconv.Atoi(f[1])
	if err := errors.Join(perr, eerr); err != nil {
		fmt.Fprintln(os.Stderr, "killpoint:", err)
		os.Exit(1)
	}
	go func() { // the end of the watch: who traces and ends lets all threads go on
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := trace(pid, f[2], unix.Errno(errno)); err != nil {
		fmt.Fprintln(os.Stderr, "killpoint:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Watch is a process under observation.
type Watch struct {
	cmd   *exec.Cmd
	stdin io.Closer
	seen  []string
	met   bool
	done  chan struct{}
}

// Start observes a process. If point is not empty, the process is killed before it; or with an errno the call is not made and
// returns that, once.
func Start(ctx context.Context, pid int, point string, errno unix.Errno) (*Watch, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s", childEnv, pid, int(errno), point))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w := &Watch{cmd: cmd, stdin: stdin, done: make(chan struct{})}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		return nil, errors.Join(fmt.Errorf("process %d is not traced: %q", pid, lines.Text()), stdin.Close(), cmd.Wait())
	}
	go func() {
		defer close(w.done)
		for lines.Scan() {
			if p, ok := strings.CutPrefix(lines.Text(), "point "); ok {
				w.seen = append(w.seen, p)
			}
			w.met = w.met || lines.Text() == "met"
		}
	}()
	return w, nil
}

// Stop ends the observation, after grace or the process's end, and returns the points that were seen, each once and in
// order, and whether the one that was asked for was met.
func (w *Watch) Stop(grace time.Duration) (seen []string, met bool, err error) {
	select {
	case <-w.done:
	case <-time.After(grace):
	}
	_ = w.stdin.Close()
	<-w.done
	return w.seen, w.met, w.cmd.Wait()
}
