// Package mutants breaks Berth on purpose, one line at a time, and demands that a named test notices: a fault tolerance
// that no test would miss is a hope. Each [Mutant] is a text in a file and what stands there instead; the test is built
// with the change laid over the sources (go help build, -overlay), so that no file of the tree is touched and there is
// nothing to clean up.
//
// It knows the sources as text and must import none of them.
package mutants

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Mutant is one change.
type Mutant struct {
	// Name says what is lost, as "image: config not synced".
	Name string
	// File is from the tree's root. Old is there exactly once, New takes its place.
	File, Old, New string
	// Package is the test's, from the tree's root, Test the test that has to fail, or "Test/case".
	Package, Test string
	// Why is what would happen in production.
	Why string
	// Env are variables that the test needs, as "BERTH_TORTURE=1".
	Env []string
}

// limit is a test's time. One that runs into it is killed by its own alarm, and the mutant with it.
const limit = 100 * time.Second

// Result is what became of one mutant, or, with an empty test, of the sources as they are.
type Result struct {
	Mutant
	// Failed are the tests that failed, the deepest first; of a killed mutant the named one is among them.
	Failed  []string
	Seconds float64
	// Said is the end of what the test printed, if it failed.
	Said string
}

// Killed says whether the test noticed.
func (r Result) Killed() bool { return len(r.Failed) > 0 }

// Lab runs tests of a tree.
type Lab struct {
	// Root is the tree, Tools the directory of third-party programs that its tests ask for.
	Root, Tools string
}

// Check says what is wrong with a table without running anything: a name that is there twice, a text that is not in its
// file exactly once, a test that is not in its package.
func (l Lab) Check(all []Mutant) error {
	var bad []error
	names := map[string]bool{}
	for _, m := range all {
		if names[m.Name] {
			bad = append(bad, fmt.Errorf("%s: there twice", m.Name))
		}
		names[m.Name] = true
		if _, err := l.mutate(m); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", m.Name, err))
		}
		if err := l.declares(m); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	return errors.Join(bad...)
}

// mutate is the changed content of the mutant's file.
func (l Lab) mutate(m Mutant) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(l.Root, m.File))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(b), m.Old); n != 1 || m.Old == m.New {
		return nil, fmt.Errorf("%s has %q %d times: the table is out of date", m.File, m.Old, n)
	}
	return []byte(strings.Replace(string(b), m.Old, m.New, 1)), nil
}

// declares says whether the package has the mutant's test.
func (l Lab) declares(m Mutant) error {
	name, _, _ := strings.Cut(m.Test, "/")
	files, err := filepath.Glob(filepath.Join(l.Root, m.Package, "*_test.go"))
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte("func "+name+"(t *testing.T)")) {
			return nil
		}
	}
	return fmt.Errorf("%s has no %s: the table is out of date", m.Package, name)
}

// Kill lays the mutant over the sources and runs its test. A mutant that does not compile is an error, not a kill.
func (l Lab) Kill(ctx context.Context, m Mutant) (Result, error) {
	text, err := l.mutate(m)
	if err != nil {
		return Result{}, err
	}
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	file := filepath.Join(dir, filepath.Base(m.File))
	over, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(l.Root, m.File): file}})
	if err != nil {
		return Result{}, err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := errors.Join(os.WriteFile(file, text, 0o600), os.WriteFile(overlay, over, 0o600)); err != nil {
		return Result{}, err
	}
	// What a test builds for itself fails in the test's own words: that it compiles is seen here.
	build := exec.CommandContext(ctx, "go", "build", "-overlay="+overlay, "-o", os.DevNull, "./"+filepath.Dir(m.File))
	build.Dir = l.Root
	if out, err := build.CombinedOutput(); err != nil {
		return Result{}, fmt.Errorf("%s: %w:\n%s", m.Name, err, tail(out))
	}
	return l.run(ctx, m, overlay)
}

// Spare runs the mutant's test on the sources as they are: it has to pass, at the second try where the machine was busy.
func (l Lab) Spare(ctx context.Context, m Mutant) error {
	r, err := l.run(ctx, m, "")
	if err == nil && r.Killed() {
		r, err = l.run(ctx, m, "")
	}
	if err == nil && r.Killed() {
		err = fmt.Errorf("%s %s fails without a mutant: %v:\n%s", m.Package, m.Test, r.Failed, r.Said)
	}
	return err
}

// run runs a test. Programs that the test builds are built with the same overlay, by GOFLAGS.
func (l Lab) run(ctx context.Context, m Mutant, overlay string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+2*time.Minute) // to compile
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout", limit.String(), "-run", pattern(m.Test), "./"+m.Package)
	cmd.Dir = l.Root
	flags := "-mod=readonly"
	if overlay != "" {
		flags += " -overlay=" + overlay
	}
	cmd.Env = append(os.Environ(), "GOFLAGS="+flags, "BERTH_TEST_RUNC="+filepath.Join(l.Tools, "runc"), "BERTH_TEST_UPSTREAM_CNI="+l.Tools)
	cmd.Env = append(cmd.Env, m.Env...)
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	out, err := cmd.CombinedOutput()
	r := Result{Mutant: m, Seconds: time.Since(start).Seconds()}
	var exit *exec.ExitError
	if err == nil {
		if !bytes.Contains(out, []byte("--- PASS: "+strings.ReplaceAll(m.Test, " ", "_")+" (")) {
			return r, fmt.Errorf("%s: %s ran no test:\n%s", m.Name, m.Test, tail(out))
		}
		return r, nil
	}
	if !errors.As(err, &exit) || ctx.Err() != nil || bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) {
		return r, fmt.Errorf("%s: %w:\n%s", m.Name, errors.Join(ctx.Err(), err), tail(out))
	}
	if r.Failed, err = judge(m.Test, out); err != nil {
		return r, fmt.Errorf("%s: %w:\n%s", m.Name, err, tail(out))
	}
	r.Said = tail(out)
	return r, nil
}

// pattern is the -run expression of exactly one test, or one case of it.
func pattern(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(strings.ReplaceAll(p, " ", "_")) + "$"
	}
	return strings.Join(parts, "/")
}

var (
	failLine   = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	signalLine = regexp.MustCompile(`(?m)^signal: .*$`)
	crashLine  = regexp.MustCompile(`(?m)^(panic|fatal error): .*$`)
)

// judge names what failed of a package's test that ended badly, the deepest first. It was the named test that failed, by its own
// line, or that was under way when the program ended by itself: in a panic, by the runtime, or by the alarm. Anything else says
// nothing about the mutant and is an error: a signal, whose sender nobody knows; another test; what the package does before and
// after its tests.
func judge(test string, out []byte) (names []string, err error) {
	test = strings.ReplaceAll(test, " ", "_")
	if by := signalLine.Find(out); by != nil {
		return nil, fmt.Errorf("its test was ended by a %s", by)
	}
	for _, x := range failLine.FindAllSubmatch(out, -1) {
		names = append(names, string(x[1]))
	}
	slices.SortStableFunc(names, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	if slices.Contains(names, test) {
		return names, nil
	}
	began := regexp.MustCompile(`(?m)^=== RUN +` + regexp.QuoteMeta(test) + `$`).Match(out)
	ended := regexp.MustCompile(`(?m)^\s*--- (PASS|SKIP): ` + regexp.QuoteMeta(test) + ` \(`).Match(out)
	if crash := crashLine.Find(out); crash != nil && began && !ended {
		return []string{test + " in " + strings.TrimSuffix(string(crash), " [recovered]")}, nil
	}
	return nil, fmt.Errorf("%s did not fail, something else did: %v", test, names)
}

func tail(b []byte) string {
	s := strings.TrimSpace(string(b))
	return s[max(0, len(s)-1500):]
}
