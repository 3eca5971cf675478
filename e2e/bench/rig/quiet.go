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
