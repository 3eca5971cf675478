package mutants

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// Absolute is the lab with absolute paths: tests run in their own directories.
func (l Lab) Absolute() (Lab, error) {
	root, err := filepath.Abs(l.Root)
	if err != nil {
		return l, err
	}
	tools, err := filepath.Abs(l.Tools)
	return Lab{Root: root, Tools: tools}, err
}

// ErrSurvived is wrapped by Hunt's error if a mutant lives.
var ErrSurvived = errors.New("survived")

// Hunt runs each test once as it is and then against its mutants, one after the other, and prints a line for each. The
// error names the survivors and whatever could not be judged.
func (l Lab) Hunt(ctx context.Context, all []Mutant, w io.Writer) error {
	spared := map[string]error{} // by package and test
	var bad []error
	start, killed := time.Now(), 0
	for i, m := range all {
		if ctx.Err() != nil {
			return errors.Join(append(bad, ctx.Err())...)
		}
		key := m.Package + " " + m.Test
		if _, known := spared[key]; !known {
			spared[key] = l.Spare(ctx, m)
		}
		if err := spared[key]; err != nil {
			fmt.Fprintf(w, "  %2d  ERROR     %-60s its test cannot judge it\n", i+1, m.Name)
			bad = append(bad, err)
			continue
		}
		r, err := l.Kill(ctx, m)
		switch {
		case err != nil:
			fmt.Fprintf(w, "  %2d  ERROR     %-60s\n", i+1, m.Name)
			bad = append(bad, err)
		case !r.Killed():
			fmt.Fprintf(w, "  %2d  SURVIVED  %-60s %5.1f s  %s %s\n", i+1, m.Name, r.Seconds, m.Package, m.Test)
			bad = append(bad, fmt.Errorf("%s: %w %s: %s", m.Name, ErrSurvived, m.Test, m.Why))
		default:
			killed++
			fmt.Fprintf(w, "  %2d  killed    %-60s %5.1f s  %s %s\n", i+1, m.Name, r.Seconds, m.Package, r.Failed[0])
		}
	}
	fmt.Fprintf(w, "  %d of %d mutants killed in %.0f s, each by the test that is named for it\n", killed, len(all), time.Since(start).Seconds())
	return errors.Join(bad...)
}

// Table prints the mutants as a table in Markdown.
func Table(w io.Writer, all []Mutant) error {
	if _, err := fmt.Fprintln(w, "| mutant | what would happen | killed by |\n|---|---|---|"); err != nil {
		return err
	}
	for _, m := range all {
		if _, err := fmt.Fprintf(w, "| %s | %s | `%s` %s |\n", m.Name, m.Why, m.Package, m.Test); err != nil {
			return err
		}
	}
	return nil
}
