// Command registry serves the test images on a loopback address until it is told to stop.
//
//	registry --testbox PATH --sh PATH --listen 127.0.0.1:5000 --hosts DIR
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth/e2e/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	testbox := flag.String("testbox", "", "the testbox program")
	sh := flag.String("sh", "", "a dynamic busybox, the images' shell")
	listen := flag.String("listen", "127.0.0.1:0", "address, port 0 for any")
	hosts := flag.String("hosts", "", "directory to write a hosts.toml tree to")
	ready := flag.String("ready", "", "file to write the address to when everything is served")
	flag.Parse()
	if err := run(ctx, *testbox, *sh, *listen, *hosts, *ready); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, testbox, sh, listen, hosts, ready string) error {
	set, err := images.Build(testbox, sh)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- images.Serve(ctx, l) }()
	if err := set.Push(l.Addr().String()); err != nil {
		cancel()
		return errors.Join(err, <-done)
	}
	if hosts != "" {
		if err := images.WriteHosts(hosts, l.Addr().String()); err != nil {
			return err
		}
	}
	if ready != "" {
		if err := os.WriteFile(ready, []byte(l.Addr().String()), 0o644); err != nil {
			return err
		}
	}
	fmt.Println(len(set), "images at", l.Addr())
	return <-done
}
