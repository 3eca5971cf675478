// Package trace counts what strace sees a runtime do: programs executed and syncs to disk. It slows a runtime down
// by a factor, so nothing is timed under it.
package trace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Counts are successful calls.
type Counts struct {
	Execs int // execve and execveat, the workload's own included
	Syncs int // fsync, fdatasync, sync, syncfs, and sync_file_range
}

const calls = "execve,execveat,fsync,fdatasync,sync,syncfs,sync_file_range"

// During counts what the processes, and all that they fork, do while f runs and for a moment after it, so that
// asynchronous work counts too.
func During(ctx context.Context, dir string, pids []int, after time.Duration, f func() error) (Counts, error) {
	log := filepath.Join(dir, "strace.log")
	args := []string{"-f", "-qq", "-e", "trace=" + calls, "-e", "signal=none", "-o", log}
	for _, p := range pids {
		args = append(args, "-p", strconv.Itoa(p))
	}
	cmd := exec.CommandContext(ctx, "strace", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return Counts{}, err
	}
	err := attached(ctx, pids)
	if err == nil {
		err = f()
	}
	time.Sleep(after)
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait() // it ends by the signal
	if err != nil {
		return Counts{}, err
	}
	b, err := os.Open(log)
	if err != nil {
		return Counts{}, err
	}
	defer b.Close() //nolint:errcheck // read only
	return parse(b)
}

// attached waits until every thread has its tracer.
func attached(ctx context.Context, pids []int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		free := 0
		for _, p := range pids {
			tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p))
			for _, t := range tasks {
				if b, err := os.ReadFile(t); err == nil && strings.Contains(string(b), "TracerPid:\t0\n") {
					free++
				}
			}
		}
		if free == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("strace did not attach within 10 s")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// parse reads strace's log. A call that another one interrupts is in two lines, of which only the second has the
// result.
func parse(r io.Reader) (Counts, error) {
	var c Counts
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if !strings.HasSuffix(line, "= 0") {
			continue
		}
		switch {
		case strings.Contains(line, "execve"):
			c.Execs++
		case strings.Contains(line, "sync"):
			c.Syncs++
		}
	}
	return c, sc.Err()
}
