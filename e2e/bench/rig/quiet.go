package rig

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"
)

// Quiet waits until less than limit percent of the last ten seconds saw a task wait for a CPU, at most for the given
// time, and says whether it came to that. Without PSI it says yes.
func Quiet(ctx context.Context, limit float64, most time.Duration) bool {
	for end := time.Now().Add(most); ; {
		b, err := os.ReadFile("/proc/pressure/cpu")
		if err != nil || someAvg10(string(b)) < limit {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func someAvg10(psi string) float64 {
	_, after, _ := strings.Cut(psi, "some avg10=")
	number, _, _ := strings.Cut(after, " ")
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0
	}
	return v
}

// Waited is for how long, since the machine was started, at least one task waited for a CPU, in microseconds
// (Documentation/accounting/psi.rst). What else a benchmark's turn was disturbed by shows in its difference.
func Waited() (uint64, error) {
	b, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0, err
	}
	return someTotal(string(b))
}

func someTotal(psi string) (uint64, error) {
	line, _, _ := strings.Cut(psi, "\n")
	_, number, _ := strings.Cut(line, "total=")
	return strconv.ParseUint(number, 10, 64)
}
