// Command bench-executor is `make bench-executor`; see package executor. The verbs init and host are the cage's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/berth-project/berth/e2e/bench/cage"
	"github.com/berth-project/berth/e2e/bench/executor"
	"github.com/berth-project/berth/e2e/bench/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code, err := verb(ctx, append(os.Args[1:], "")[0], os.Args[min(2, len(os.Args)):])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-executor:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func verb(ctx context.Context, name string, args []string) (int, error) {
	c, err := executor.FromEnv()
	if err != nil {
		return 2, err
	}
	switch name {
	case "":
		return 0, all(ctx, c)
	case "init": // pid 1 of the cage
		return cage.Init(args[0], args[1:])
	case "host":
		return 0, executor.Host(ctx, c, args[0])
	}
	return 2, fmt.Errorf("unknown verb %q; bench-executor has no arguments", name)
}

// all measures both peers, writes executor.json and prints the table and the verdicts; a missed bar is no error.
func all(ctx context.Context, c executor.Config) (err error) {
	work, err := os.MkdirTemp("", executor.Mark+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var r report.Report
	fmt.Printf("runc on this machine, %d containers each, in turn\n", c.Samples)
	file := filepath.Join(work, "host.json")
	code, err := cage.Run(ctx, cage.Spec{Mark: executor.Mark, Dirs: []string{executor.Dir()}, Cgroup: "/" + executor.Mark}, "init", []string{"host", file})
	if err != nil || code != 0 {
		return errors.Join(err, fmt.Errorf("the cage ended with %d", code))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	told, err := executor.Parse(string(text))
	if err != nil {
		return err
	}
	executor.Rows(&r, "runc", told)
	fmt.Printf("Debian's crun in a virtual machine, %d containers each, in turn\n", c.GuestSamples)
	guest := filepath.Join(work, "vm")
	if err := os.Mkdir(guest, 0o755); err != nil {
		return err
	}
	if told, err = executor.Guest(ctx, c, guest); err != nil {
		return err
	}
	executor.Rows(&r, "crun", told)
	out := filepath.Join(c.Out, "bench", "executor.json")
	if err := r.WriteJSON(out); err != nil {
		return err
	}
	r.Print(os.Stdout)
	fmt.Println("\nCreate is the cgroup with its limits on Berth's side. The bars:")
	missed := r.PrintBars(os.Stdout, executor.Bars())
	fmt.Printf("%d of %d bars hold; the figures are in %s\n", len(executor.Bars())-missed, len(executor.Bars()), out)
	return nil
}
