package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/internal/failpoint"
	"github.com/berth-project/berth/internal/parts"
	"github.com/berth-project/berth/proto/rpc"
)

// callDeadline is for calls that come without one; the kubelet and the sidecars always set their own.
const callDeadline = 10 * time.Minute

// stopGrace is how long calls under way may take once the daemon is told to end.
const stopGrace = 3 * time.Second

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
	all := parts.Begin(ctx)
	g := grpc.NewServer(rpc.NewEdge(d.log, callDeadline, nil, d.debug.calls.Observe).Options()...)
	d.driver.Register(g)
	all.Go("volumes", d.volumes.Run)
	all.Go("debug", d.debug.run)
	all.Go("grpc", func(context.Context) error { return g.Serve(l) })
	if d.conf.Registry != "" {
		all.Go("registration", func(ctx context.Context) error { return d.registration.Run(ctx, d.conf.Registry) })
	}
	if d.loops != nil {
		all.Go("loops", d.loops.Run)
	}
	d.log.Info("serving", "socket", l.Addr().String(), "driver", d.conf.Driver, "node", d.conf.Node, "version", version)
	<-all.Context().Done()
	rpc.Stop(g, stopGrace)
	return all.Wait()
}
