package soak

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// tally counts what the parts of a soak did and saw.
type tally struct {
	lives, late, execs, streams, events, logLines, pulls, upgrades atomic.Int64

	mu     sync.Mutex
	faults []string
	downs  []time.Duration // how long each upgrade left the socket without a daemon
}

func newTally() *tally { return &tally{} }

// fault notes what should never be seen.
func (t *tally) fault(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(os.Stderr, "%s fault: %s\n", time.Now().UTC().Format("15:04:05.000"), text)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = append(t.faults, text)
}

func (t *tally) down(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.downs = append(t.downs, d)
}

// seen are the faults and the longest time without a daemon.
func (t *tally) seen() (faults []string, longest time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.downs {
		longest = max(longest, d)
	}
	return t.faults, longest
}
