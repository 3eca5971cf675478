package gpubench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// idleCost is what the plugin costs while nothing happens: per cent of one core, and MiB of PSS.
func idleCost(ctx context.Context, p *harness.Process) (cpu, pss float64, err error) {
	before, err := cpuTime(p.Pid())
	if err != nil {
		return 0, 0, err
	}
	select {
	case <-time.After(idle):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	after, err := cpuTime(p.Pid())
	if err != nil {
		return 0, 0, err
	}
	pss, err = proportional(p.Pid())
	return (after - before).Seconds() / idle.Seconds() * 100, pss, err
}

// cpuTime is a process's, of all its threads, by the scheduler's own count: it has nanoseconds, where stat has
// hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// proportional is a process's PSS in MiB.
func proportional(pid int) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	s := bufio.NewScanner(f)
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no Pss of process %d", pid)
}
