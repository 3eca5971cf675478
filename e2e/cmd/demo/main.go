// Command demo is `make run` and `make stop`: a real kubelet on Berth, with a pod that answers.
//
//	demo --bin DIR --tools DIR run     start everything that does not run yet, show the pod's page
//	demo --bin DIR --tools DIR stop    stop it, and prove that nothing is left
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	bin := flag.String("bin", "bin", "directory of Berth's programs")
	tools := flag.String("tools", ".cache/tools", "directory of upstream programs")
	flag.Parse()
	if err := demo(ctx, *bin, *tools, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, bin, tools, verb string) error {
	for _, dir := range []*string{&bin, &tools} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	lab := harness.NewLab("demo", bin, tools)
	lab.Pods = "10.89.0.0/16"
	switch verb {
	case "run":
		ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		return run(ctx, lab)
	case "stop":
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return stop(ctx, lab)
	}
	return fmt.Errorf("unknown verb %q: want run or stop", verb)
}
