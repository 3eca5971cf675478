package test

import (
	"fmt"
	"iter"
	"strings"
)

// lines yields the names of a table "name number".
func lines(table string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(table) {
			f := strings.Fields(line)
			if len(f) == 2 && f[1][0] >= '0' && f[1][0] <= '9' && !yield(f[0]) {
				return
			}
		}
	}
}

func lines2(text string) iter.Seq[string] { return strings.Lines(text) }

func sscan(line, format string, args ...any) (int, error) {
	return fmt.Sscanf(strings.Join(strings.Fields(line), " "), format, args...)
}
