package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/proto/rpc"
)

// callDeadline is for calls that come without one; the kubelet and the sidecars always set their own.
const callDeadline = 10 * time.Minute

// serve runs the driver until ctx ends. Mounts go on after it.
func serve(ctx context.Context, path, node string) error {
	conf, err := config.Load(path)
	if err != nil {
		return err
	}
	conf.Node = cmp.Or(node, conf.Node)
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		return err
	}
	if err := failpoint.Load(filepath.Join(conf.State, "failpoints")); err != nil {
		return err
	}
	d, err := build(conf, log)
	if err != nil {
		return err
	}
	start := time.Now()
	d.volumes.Reconcile(ctx)
	log.Info("reconciled", "volumes", len(d.volumes.Volumes()), "snapshots", len(d.volumes.Snapshots()), "took", time.Since(start))
	l, err := rpc.Listen(conf.Socket)
	if err != nil {
		return errors.Join(err, d.journal.Close())
	}
	return errors.Join(d.run(ctx, l), d.journal.Close())
}

// run serves until ctx ends or a part fails, then stops all parts and waits for them.
func (d *daemon) run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	g := grpc.NewServer(rpc.NewEdge(d.log, callDeadline, nil, d.debug.observe).Options()...)
	d.driver.Register(g)
	part(d.volumes.Run)
	part(d.debug.run)
	part(func(context.Context) error { return g.Serve(l) })
	if d.conf.Registry != "" {
		part(func(ctx context.Context) error { return d.registration.Run(ctx, d.conf.Registry) })
	}
	if d.loops != nil {
		part(d.loops.Run)
	}
	d.log.Info("serving", "socket", l.Addr().String(), "driver", d.conf.Driver, "node", d.conf.Node, "version", version)
	<-ctx.Done()
	stopped := make(chan struct{})
	go func() { g.GracefulStop(); close(stopped) }() //nolint:gocritic // waited for
	select {
	case <-stopped:
	case <-time.After(3 * time.Second):
		g.Stop()
		<-stopped
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
