// Command berth-netd is Berth's network agent: it connects the pods of one node with those of all others. See
// docs/design/netd.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/berth-project/berth/cni/internal/agent"
	"github.com/berth-project/berth/cni/internal/fabric"
	"github.com/berth-project/berth/cni/internal/kube"
	"github.com/berth-project/berth/cni/internal/netdconf"
)

var version = "dev"

const usage = `usage: berth-netd [--config FILE] COMMAND
  serve                     run the agent
  status [--json]           who is reached how, what is wrong, what was done last
  trace FROM TO             the path of a packet between two addresses, hop by hop
  metrics                   in Prometheus' text format
  config default            print the configuration with every default
  config check [FILE...]    check the configuration, and fabric files
  version
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth-netd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("berth-netd", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage) }
	file := flags.String("config", "/etc/berth/netd.yaml", "configuration file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	words := flags.Args()
	switch {
	case len(words) == 1 && words[0] == "serve":
		return serve(ctx, *file)
	case len(words) >= 1 && words[0] == "status":
		q := url.Values{}
		if len(words) == 2 && words[1] == "--json" {
			q.Set("format", "json")
		}
		return ask(ctx, *file, "/status", q, out)
	case len(words) == 1 && words[0] == "metrics":
		return ask(ctx, *file, "/metrics", nil, out)
	case len(words) == 3 && words[0] == "trace":
		return ask(ctx, *file, "/trace", url.Values{"from": {words[1]}, "to": {words[2]}}, out)
	case len(words) == 2 && words[0] == "config" && words[1] == "default":
		text, err := netdconf.Default().Text()
		return errors.Join(err, write(out, text))
	case len(words) >= 2 && words[0] == "config" && words[1] == "check":
		return check(*file, words[2:], out)
	case len(words) == 1 && words[0] == "version":
		return write(out, version+"\n")
	}
	flags.Usage()
	return errors.New("no such command")
}

func write(out io.Writer, text string) error {
	_, err := io.WriteString(out, text)
	return err
}

func ask(ctx context.Context, file, path string, q url.Values, out io.Writer) error {
	conf, err := netdconf.Load(file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := agent.Ask(ctx, conf.Socket(), path, q)
	return errors.Join(err, write(out, text))
}

// check reads the configuration and the fabric it names, or the given fabric files alone.
func check(file string, fabrics []string, out io.Writer) error {
	if len(fabrics) == 0 {
		conf, err := netdconf.Load(file)
		if err != nil {
			return err
		}
		if conf.Kubernetes.Enabled {
			return kube.Check(conf.Kubernetes)
		}
		fabrics = []string{conf.Fabric}
	}
	var all []error
	for _, path := range fabrics {
		b, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
		if err == nil {
			_, err = fabric.Parse(b)
		}
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", path, err))
			continue
		}
		all = append(all, write(out, path+" is good\n"))
	}
	return errors.Join(all...)
}
