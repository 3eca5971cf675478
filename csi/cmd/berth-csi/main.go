// Command berth-csi is the CSI driver for local volumes: it serves CSI 1.13 and the kubelet's plugin registration on
// Unix sockets, and runs the provisioning, resize, snapshot and capacity loops of its own node.
//
//	berth-csi [--config FILE] [--node NAME]   serve; --node is the node's name, before what the file says
//	berth-csi config default                  print the configuration with every default and an example of a pool
//	berth-csi config check FILE               say what is wrong with a configuration
//	berth-csi [--config FILE] pools           what each pool has promised, and what is wrong with it
//	berth-csi [--config FILE] volumes         all volumes and snapshots of this node
//	berth-csi [--config FILE] orphans         storage that no record knows
//	berth-csi [--config FILE] adopt PV...     take over PersistentVolumes that are directories of this node
//	berth-csi gone [--policy P] [--after D]   for the whole cluster: what nodes that will not return have left
//	berth-csi failpoints                      list the places where a test can make it fail
//	berth-csi version
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

	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/internal/failpoint"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "berth-csi:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("berth-csi", flag.ContinueOnError)
	path := flags.String("config", "/etc/berth/csi.toml", "configuration file (TOML)")
	node := flags.String("node", "", "this node's name, before what the configuration says")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch rest := flags.Args(); {
	case len(rest) == 0:
		return serve(ctx, *path, *node)
	case len(rest) == 1 && (rest[0] == "pools" || rest[0] == "volumes" || rest[0] == "orphans"):
		return show(ctx, *path, rest[0], out)
	case rest[0] == "adopt":
		return adoptAll(ctx, *path, *node, rest[1:], out)
	case rest[0] == "gone":
		return lookAfterGone(ctx, rest[1:])
	case rest[0] == "failpoints" && len(rest) == 1:
		_, err := fmt.Fprintln(out, strings.Join(failpoint.Names(), "\n"))
		return err
	case rest[0] == "version":
		_, err := fmt.Fprintln(out, "berth-csi", version)
		return err
	case len(rest) == 2 && rest[0] == "config" && rest[1] == "default":
		text, err := config.Example().Text()
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
	return fmt.Errorf("unknown command %q: have config default, config check FILE, pools, volumes, orphans, adopt PV..., gone, failpoints, version, or none to serve", flags.Args())
}
