// Command mutants breaks Berth in every way that the table of package mutants has, one at a time, and runs the test that
// has to notice. It prints a line for each and fails if one survives, if a test fails without a mutant, or if the table
// does not fit the sources.
//
//	mutants [-root DIR] [-tools DIR] [-run REGEXP] [-list]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"

	"github.com/berth-project/berth/e2e/mutants"
)

func main() { os.Exit(mutants.Cage(hunt)) }

func hunt() int {
	root := flag.String("root", "..", "the tree")
	tools := flag.String("tools", os.Getenv("BERTH_TOOLS"), "third-party programs that tests ask for")
	only := flag.String("run", "", "only mutants whose name matches")
	list := flag.Bool("list", false, "print the table and run nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, mutants.Lab{Root: *root, Tools: *tools}, *only, *list, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		return 1
	}
	return 0
}

func command(ctx context.Context, lab mutants.Lab, only string, list bool, w io.Writer) error {
	fits, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	all := slices.DeleteFunc(mutants.All(), func(m mutants.Mutant) bool { return !fits.MatchString(m.Name) })
	lab, err = lab.Absolute()
	if err != nil {
		return err
	}
	if err := lab.Check(all); err != nil || len(all) == 0 {
		return errors.Join(err, fmt.Errorf("%d mutants", len(all)))
	}
	if list {
		return mutants.Table(w, all)
	}
	return lab.Hunt(ctx, all, w)
}
