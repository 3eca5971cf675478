// Package conform is a conformance suite for CNI plugins as they are executed: it knows nothing of a plugin but its file,
// and judges by what the specification says, by what is in the kernel afterwards, and by what is left when all is
// deleted. It runs any set of the containernetworking project's plugins, so that two sets can be compared.
//
// It works in network namespaces of its own, below a mount namespace with an empty /run and /var/lib (see [Isolate]).
package conform

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Set is a directory of plugins.
type Set struct {
	Name, Dir string
}

// Case is one thing that a plugin must do. A case runs on a host of its own.
type Case struct {
	Subject Subject
	Name    string
	Run     func(*T)
}

// T is a running case.
type T struct {
	Set
	Subject
	host  *Host
	fails []string
	serial
}

// serial numbers containers.
type serial struct{ next int }

// Failf notes a failure; the case goes on.
func (t *T) Failf(format string, args ...any) {
	t.fails = append(t.fails, fmt.Sprintf(format, args...))
}

// stop ends a case that cannot go on.
type stop struct{}

// Fatalf notes a failure and ends the case.
func (t *T) Fatalf(format string, args ...any) {
	t.Failf(format, args...)
	panic(stop{})
}

// Outcome is what became of a case.
type Outcome struct {
	Fails []string
	Took  time.Duration
}

// Passed says whether nothing failed.
func (o Outcome) Passed() bool { return len(o.Fails) == 0 }

// run runs a case against a set.
func (c Case) run(s Set) (out Outcome) {
	start := time.Now()
	t := &T{Set: s, Subject: c.Subject}
	defer func() {
		if t.host != nil {
			t.host.close()
		}
		if p := recover(); p != nil {
			if _, ok := p.(stop); !ok {
				panic(p)
			}
		}
		out = Outcome{Fails: t.fails, Took: time.Since(start)}
	}()
	var err error
	if t.host, err = newHost(); err != nil {
		t.Fatalf("the suite's own host: %v", err)
	}
	c.Run(t)
	return out
}

// Run runs the cases whose "subject: name" contains filter against all sets, a line for each, and returns how many
// failed for each set. A set that lacks the subject's plugins, as others lack type berth, is passed over.
func Run(out io.Writer, sets []Set, filter string) (failed map[string]int) {
	failed = map[string]int{}
	total := map[string]int{}
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) }
	p("%-11s %-66s", "type", "case")
	for _, s := range sets {
		p(" %-9s", s.Name)
	}
	p("\n")
	for _, c := range Cases() {
		if !strings.Contains(c.Subject.Name+": "+c.Name, filter) {
			continue
		}
		p("%-11s %-66.66s", c.Subject.Name, c.Name)
		var why []string
		for _, s := range sets {
			if !s.has(c.Subject) {
				p(" %-9s", "-")
				continue
			}
			total[s.Name]++
			o := c.run(s)
			word := "ok"
			if !o.Passed() {
				word = "FAIL"
				failed[s.Name]++
				for _, f := range o.Fails[:min(len(o.Fails), 3)] {
					why = append(why, fmt.Sprintf("%14s%s: %.300s", "", s.Name, strings.ReplaceAll(f, "\n", " ⏎ ")))
				}
				if n := len(o.Fails); n > 3 {
					why = append(why, fmt.Sprintf("%14s%s: … and %d more", "", s.Name, n-3))
				}
			}
			p(" %-9s", word)
		}
		p("\n")
		for _, w := range slices.Compact(why) {
			p("%s\n", w)
		}
	}
	for _, s := range sets {
		p("%s: %d of %d cases pass, %d fail\n", s.Name, total[s.Name]-failed[s.Name], total[s.Name], failed[s.Name])
	}
	return failed
}
