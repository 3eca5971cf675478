// Command bench is `make bench-cri`; see package bench. The verbs are its own: init and enter for the cage, registry
// for the images.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth/e2e/bench"
	"github.com/berth-project/berth/e2e/bench/cage"
	"github.com/berth-project/berth/e2e/bench/rig"
	"github.com/berth-project/berth/e2e/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code, err := verb(ctx, append(os.Args[1:], "")[0], os.Args[min(2, len(os.Args)):])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func verb(ctx context.Context, name string, args []string) (int, error) {
	switch name {
	case "":
		if _, err := bench.FromEnv(); err != nil {
			return 2, err
		}
		return cage.Run(ctx, cage.Spec{Mark: rig.Mark, Dirs: bench.Dirs(), Cgroup: rig.Root}, "init", []string{"measure"})
	case "init": // pid 1 of the cage
		return cage.Init(args[0], args[1:])
	case "measure":
		c, err := bench.FromEnv()
		if err != nil {
			return 2, err
		}
		return 0, bench.Run(ctx, c)
	case "enter":
		return 1, cage.Enter(args[0], args[1:])
	case "registry":
		return 0, serve(ctx, args[0], args[1], args[2], args[3])
	}
	return 2, fmt.Errorf("unknown verb %q; bench has no arguments", name)
}

// serve is the registry: it writes the hosts.toml tree, then its address to the file ready.
func serve(ctx context.Context, testbox, wait, hosts, ready string) error {
	set, err := images.Bench(testbox, wait)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- images.Serve(ctx, l) }()
	addr := l.Addr().String()
	for _, step := range []func() error{
		func() error { return set.Push(addr) },
		func() error { return images.WriteHosts(hosts, addr) },
		func() error { return os.WriteFile(ready, []byte(addr), 0o644) },
	} {
		if err := step(); err != nil {
			cancel()
			return errors.Join(err, <-done)
		}
	}
	return <-done
}
