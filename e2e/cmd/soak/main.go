// Command soak is `make soak`; see package soak. The verbs init and load are the cage's own.
//
//	soak judge out/soak-samples.json   the verdict of a soak that has been, of the length that BERTH_SOAK says
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth/e2e/bench/cage"
	"github.com/berth-project/berth/e2e/soak"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code, err := verb(ctx, append(os.Args[1:], "")[0], os.Args[min(2, len(os.Args)):])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func verb(ctx context.Context, name string, args []string) (int, error) {
	c, err := soak.FromEnv()
	if err != nil {
		return 2, err
	}
	switch name {
	case "":
		return cage.Run(ctx, cage.Spec{Mark: soak.Mark, Dirs: soak.Dirs(), Cgroup: "/" + soak.Mark}, "init", []string{"load"})
	case "init": // pid 1 of the cage
		return cage.Init(args[0], args[1:])
	case "load":
		return 0, soak.Run(ctx, c)
	case "judge":
		if len(args) == 1 {
			return 0, soak.Judge(args[0], c.For, os.Stdout)
		}
	}
	return 2, fmt.Errorf("unknown verb %q with %d arguments; soak has none, or judge FILE", name, len(args))
}
