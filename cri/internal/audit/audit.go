// Package audit is the vocabulary of an offline look at the stores: what is found, and what is to be done about it. The
// owners of the stores look (store.Audit, pod.Audit, image.Audit), each at what it alone understands; nobody changes
// anything but Finding.Apply.
// The package imports no other package of the daemon.
package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/berth-project/berth/internal/atomicfile"
)

// Action is what mends a finding.
type Action int

// Actions. Evidence is kept: what is damaged goes to a quarantine directory, only leftovers of writes that never counted
// are removed.
const (
	None       Action = iota // nothing to do, or nothing that may be done without the daemon
	Remove                   // the path is a leftover
	Quarantine               // the path is damaged: it is moved into a directory
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Object string // "pod 12ab…", "layer 34cd…"
	What   string // what is wrong with it, and what that means
	Harm   bool   // something is lost; else it only takes space, or the daemon's next start sees to it
	Action Action
	Path   string // what Action concerns
	Into   string // the directory of Quarantine
}

// Repair says what Apply does.
func (f Finding) Repair() string {
	switch f.Action {
	case Remove:
		return "remove " + f.Path
	case Quarantine:
		return "move to " + f.Into
	}
	return "-"
}

// Apply mends it. Something that has gone meanwhile is fine.
func (f Finding) Apply() error {
	var err error
	switch f.Action {
	case Remove:
		err = os.RemoveAll(f.Path)
	case Quarantine:
		_, err = atomicfile.Quarantine(f.Path, f.Into)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", f.Object, err)
	}
	return nil
}

// Write prints findings as a table, what does harm first.
func Write(out io.Writer, all []Finding) error {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\tOBJECT\tWHAT\tREPAIR") //nolint:errcheck // Flush says so
	for _, harm := range []bool{true, false} {
		for _, f := range all {
			if f.Harm == harm {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", map[bool]string{true: "HARM", false: "note"}[harm], f.Object, f.What, f.Repair()) //nolint:errcheck // as above
			}
		}
	}
	return t.Flush()
}

// Harm counts the findings by which something is lost.
func Harm(all []Finding) int {
	n := 0
	for _, f := range all {
		if f.Harm {
			n++
		}
	}
	return n
}
