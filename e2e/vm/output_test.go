package vm

import (
	"strings"
	"testing"
)

// TestBreaker: the power is cut once, when the word is whole, in however many pieces it comes; all output is passed on.
func TestBreaker(t *testing.T) {
	var out strings.Builder
	cuts := 0
	b := &breaker{to: &out, word: "now", cut: func() error { cuts++; return nil }}
	for i, c := range []struct {
		text string
		cuts int
	}{{"no", 0}, {"t n", 0}, {"o", 0}, {"w, ", 1}, {"now", 1}} {
		if n, err := b.Write([]byte(c.text)); n != len(c.text) || err != nil || cuts != c.cuts || b.tripped != (c.cuts > 0) {
			t.Errorf("%d: %d, %v, cut %d times, want %d", i, n, err, cuts, c.cuts)
		}
	}
	if out.String() != "not now, now" {
		t.Errorf("passed on: %q", out.String())
	}
}
