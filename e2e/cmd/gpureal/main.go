// Command gpureal is what e2e/gpu/real.sh runs; see package gpureal.
//
//	gpureal image FILE BUSYBOX VECTORADD     make the image
//	gpureal run --bin DIR --out DIR --archive FILE [--driver DIR] [--fake PROFILE]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth/e2e/gpureal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gpureal:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func command(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "image":
		return gpureal.WriteImage(args[1], args[2], args[3])
	case len(args) > 1 && args[0] == "run":
		var c gpureal.Config
		f := flag.NewFlagSet("gpureal run", flag.ContinueOnError)
		f.StringVar(&c.Bin, "bin", "", "where Berth's programs are")
		f.StringVar(&c.Out, "out", "", "where to write what was seen")
		f.StringVar(&c.Archive, "archive", "", "the image")
		f.StringVar(&c.Driver, "driver", "/", "the driver's root")
		f.StringVar(&c.Fake, "fake", "", "a profile in place of a GPU")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		if err := os.MkdirAll(c.Out, 0o755); err != nil {
			return err
		}
		return gpureal.Run(ctx, c, os.Stdout)
	}
	return errors.New("usage: gpureal image FILE BUSYBOX VECTORADD | gpureal run --bin DIR --out DIR --archive FILE [--driver DIR] [--fake PROFILE]")
}
