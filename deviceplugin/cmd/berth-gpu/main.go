// Command berth-gpu is the GPU device plugin: it offers a node's NVIDIA GPUs to the kubelet and hands them to
// containers through CDI.
//
//	berth-gpu [--config FILE] [--override NAME] [--fake PROFILE]   serve
//	berth-gpu [--config FILE] status [--json]   what a running one knows: GPUs, health, who holds them
//	berth-gpu config default              print the configuration with every default
//	berth-gpu config check FILE           say what is wrong with a configuration
//	berth-gpu profiles                    list the fake nodes that are built in
//	berth-gpu [...] inventory             print what is there, as JSON
//	berth-gpu [...] record                print it as a profile, for --fake
//	berth-gpu [...] probe                 (internal) answer for the driver on standard input and output
//	berth-gpu failpoints                  list the places where a test can make it fail
//	berth-gpu version
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/berth-project/berth/deviceplugin/internal/config"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/mps"
	"github.com/berth-project/berth/internal/failpoint"
)

// version is set by the build.
var version = "dev"

// options are the flags.
type options struct {
	config, override, fake string
	child                  bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "berth-gpu:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("berth-gpu", flag.ContinueOnError)
	flags.StringVar(&o.config, "config", "", "configuration file (TOML); without one the defaults hold")
	flags.StringVar(&o.override, "override", "", "take this override of the configuration")
	flags.StringVar(&o.fake, "fake", "", "a profile instead of GPUs: a name (berth-gpu profiles) or a file")
	flags.BoolVar(&o.child, "fake-child", false, "ask the profile through the probe process, as NVML is")
	if err := flags.Parse(args); err != nil {
		return err
	}
	rest := flags.Args()
	if len(rest) == 0 {
		return serve(ctx, o)
	}
	if rest[0] == mps.Verb && len(rest) == 3 {
		return mps.Become(rest[1], rest[2])
	}
	switch what := strings.Join(rest[:min(len(rest), 2)], " "); {
	case what == "probe":
		return probe(ctx, o)
	case rest[0] == "status" && len(rest) <= 2:
		return status(ctx, o, rest[1:], out)
	case what == "inventory":
		return printInventory(ctx, o, out)
	case what == "record":
		return record(ctx, o, out)
	case what == "profiles":
		_, err := fmt.Fprintln(out, strings.Join(fake.Names(), "\n"))
		return err
	case what == "failpoints":
		_, err := fmt.Fprintln(out, strings.Join(failpoint.Names(), "\n"))
		return err
	case what == "version":
		_, err := fmt.Fprintln(out, "berth-gpu", version)
		return err
	case what == "config default":
		text, err := config.Default().Text()
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, text)
		return err
	case what == "config check" && len(rest) == 3:
		if _, err := config.Load(rest[2]); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, rest[2], "is good")
		return err
	}
	return fmt.Errorf("unknown command %q: have config default, config check FILE, status [--json], profiles, inventory, record, failpoints, version, or none to serve", rest)
}
