// Command berth-cri is the container runtime daemon: it serves the CRI on a Unix socket.
//
//	berth-cri [--config FILE]                 serve
//	berth-cri config default                  print the configuration with every default
//	berth-cri config check FILE               say what is wrong with a configuration
//	berth-cri [--config FILE] image import FILE        give a running daemon the images of an archive
//	berth-cri [--config FILE] image export FILE REF…   write images of a running daemon to an OCI archive
//	berth-cri [--config FILE] check [--repair]         look for damage in the stores of a daemon that is stopped
//	berth-cri failpoints                      list the places where a test can make it fail
//	berth-cri version
//
// Its own children are "berth-cri unpack …", see package unpacker.
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

	"github.com/berth-project/berth/cri/internal/config"
	"github.com/berth-project/berth/cri/internal/unpacker"
	"github.com/berth-project/berth/internal/failpoint"
)

// version is set by the build.
var version = "dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == unpacker.Command {
		os.Exit(unpacker.Main(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "berth-cri:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("berth-cri", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file (TOML); without one the defaults hold")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch rest := flags.Args(); {
	case len(rest) == 0:
		return serve(ctx, *path)
	case rest[0] == "image":
		return imageCommand(ctx, *path, rest[1:], out)
	case rest[0] == "check" && (len(rest) == 1 || len(rest) == 2 && rest[1] == "--repair"):
		return checkCommand(*path, len(rest) == 2, out)
	case rest[0] == "failpoints" && len(rest) == 1:
		_, err := fmt.Fprintln(out, strings.Join(failpoint.Names(), "\n"))
		return err
	case rest[0] == "version":
		_, err := fmt.Fprintln(out, "berth-cri", version)
		return err
	case len(rest) == 2 && rest[0] == "config" && rest[1] == "default":
		text, err := config.Default().Text()
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, text)
		return err
	case len(rest) == 3 && rest[0] == "config" && rest[1] == "check":
		if _, err := config.Load(rest[2]); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, rest[2], "is good")
		return err
	}
	return fmt.Errorf("unknown command %q: have config default, config check FILE, image import FILE, image export FILE REF…, check [--repair], failpoints, version, or none to serve", flags.Args())
}
