package csibench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

const (
	window  = 300 * time.Millisecond
	idle    = 0.25 // of one CPU, for all of them together: etcd, watches and leases never rest wholly
	longest = time.Minute
)

// rest waits until nothing that an earlier burst caused is under way: the pools' trash is empty, and the control plane
// and the drivers have used next to no CPU in two windows, one after the other.
func (b *bench) rest(ctx context.Context, drivers ...*harness.Process) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	pids, err := b.processes(drivers...)
	if err != nil {
		return err
	}
	for quiet := 0; quiet < 2; {
		before, err := cpuTime(pids)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("what a burst left is not done after %v: %w", longest, ctx.Err())
		case <-time.After(window):
		}
		after, err := cpuTime(pids)
		if err != nil {
			return err
		}
		quiet++
		if b.erasing() || float64(after-before) > idle*float64(window) {
			quiet = 0
		}
	}
	return nil
}

// processes are those of the control plane and the given drivers.
func (b *bench) processes(drivers ...*harness.Process) (pids []int, err error) {
	for _, name := range harness.ControlPlane() {
		text, err := os.ReadFile(filepath.Join(b.lab.Logs(), name+".pid"))
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s's pid file: %w", name, err)
		}
		pids = append(pids, pid)
	}
	for _, p := range drivers {
		pids = append(pids, p.Pid())
	}
	return pids, nil
}

// erasing says whether a pool's trash holds anything.
func (b *bench) erasing() bool {
	for _, pool := range []string{"btrfs", "loop"} {
		if names, err := os.ReadDir(filepath.Join(b.mount(pool), "p", "trash")); err != nil || len(names) > 0 {
			return true
		}
	}
	return false
}

// cpuTime is what processes and the children that they have waited for have used, by /proc/PID/stat (proc(5): utime,
// stime, cutime and cstime, in ticks of 10 ms).
func cpuTime(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		text, rerr := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, after, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(after)
		if rerr != nil || len(fields) < 15 {
			return 0, fmt.Errorf("process %d: %q: %w", pid, text, errors.Join(rerr, os.ErrProcessDone))
		}
		for _, f := range fields[11:15] {
			ticks, perr := strconv.ParseInt(f, 10, 64)
			err = errors.Join(err, perr)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum, err
}
